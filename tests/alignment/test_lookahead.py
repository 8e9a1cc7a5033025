"""What could undo a cut, against every token of real vocabularies."""

from itertools import pairwise

import pytest

from tests.alignment.pairs import pair_id, tokenizer
from trl_xtok.alignment.aligner import TokenizerAligner


PAIRS = [("smollm2", "qwen3"), ("llama3", "mistral1")]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text", ["fort", "("])
def test_every_longer_token_that_the_student_cuts_there(pair, text):
    student, teacher = map(tokenizer, pair)
    aligner = TokenizerAligner(student, teacher)
    pieces = aligner._teacher.table.pieces
    (token_id,) = [i for i in aligner.shared_tokens().teacher_ids if pieces[i] == text.encode()]
    expected = set()
    for piece in pieces:
        if piece and piece.startswith(text.encode()) and _is_text(piece):
            ids, spelled = aligner.student_ids(piece.decode()), b""
            for own, following in pairwise(ids):
                spelled += aligner._student.table.pieces[own]
                expected |= {following} if spelled == text.encode() else set()
    found = set(aligner.undoing(token_id))
    assert expected <= found
    # What is left belongs to tokens that end within a character.
    assert all(not _is_text(aligner._student.table.pieces[extra]) for extra in found - expected)


def _is_text(piece):
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_hyphen_waits_for_the_number():
    """SmolLM2 spells `-two` as `-`, `two`, Qwen 3 as one token; both have ` forty` alone."""
    student, teacher = tokenizer("smollm2"), tokenizer("qwen3")
    aligner = TokenizerAligner(student, teacher)
    hyphen, number = teacher.convert_tokens_to_ids(["-", "Ġforty"])
    assert student.convert_tokens_to_ids("two") in aligner.undoing(hyphen)
    assert student.convert_tokens_to_ids("Ġeighty") not in aligner.undoing(hyphen)
    assert student.convert_tokens_to_ids("-") not in aligner.undoing(number)


def test_nothing_undoes_control_tokens_or_cuts_of_the_same_vocabulary():
    student, teacher = tokenizer("smollm2"), tokenizer("qwen3")
    assert TokenizerAligner(student, teacher).undoing(teacher.eos_token_id) == []
    same = TokenizerAligner(student, student)
    assert all(same.undoing(token_id) == [] for token_id in student.convert_tokens_to_ids(["-", "a", "Ġ", "."]))
