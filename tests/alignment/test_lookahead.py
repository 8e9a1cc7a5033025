"""What could undo a cut, against every token of real vocabularies."""

from itertools import pairwise

import pytest

from tests.alignment.pairs import pair_id, tokenizer
from trl_xtok.alignment.aligner import TokenizerAligner
from trl_xtok.alignment.spelling import Spelling


PAIRS = [("smollm2", "qwen3"), ("llama3", "mistral1")]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text", ["fort", "(", ";"])
def test_every_longer_token_that_the_student_cuts_there(pair, text):
    student, teacher = map(tokenizer, pair)
    aligner = TokenizerAligner(student, teacher)
    pieces = aligner._teacher.table.pieces
    (token_id,) = [i for i in aligner.shared_tokens().teacher_ids if pieces[i] == text.encode()]
    expected = {
        own
        for own, piece in enumerate(aligner._student.table.pieces)
        if piece
        and not any(byte > 127 or chr(byte).isalnum() for byte in piece)
        and undoes(aligner, text.encode(), piece)
    }
    for piece in pieces:
        if piece and piece.startswith(text.encode()) and _is_text(piece):
            ids, spelled = aligner.student_ids(piece.decode()), b""
            for own, following in pairwise(ids):
                spelled += aligner._student.table.pieces[own]
                expected |= {following} if spelled == text.encode() else set()
    found = set(aligner.undoing(token_id))
    assert found
    assert expected <= found
    # What is left belongs to tokens that end within a character.
    assert all(not _is_text(aligner._student.table.pieces[extra]) for extra in found - expected)


def undoes(aligner, piece, following):
    """Whether the teacher spells the two with no end between them, and the student with one."""
    student, teacher = Spelling(), Spelling()
    aligner._student.spell(piece + following, student)
    aligner._teacher.spell(piece + following, teacher)
    return len(piece) in student.ends and len(piece) not in teacher.ends and student.ends[-2:-1] == [len(piece)]


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


def test_an_indented_line_is_beyond_the_token_that_undoes():
    """Qwen 3 has `;\n`, and SmolLM2 writes the line break together with eight spaces."""
    student, teacher = tokenizer("smollm2"), tokenizer("qwen3")
    aligner = TokenizerAligner(student, teacher)
    (line,) = aligner.student_ids("\n        ")
    assert line in aligner.undoing(teacher.convert_tokens_to_ids(";"))


def test_nothing_undoes_control_tokens_or_cuts_of_the_same_vocabulary():
    student, teacher = tokenizer("smollm2"), tokenizer("qwen3")
    assert TokenizerAligner(student, teacher).undoing(teacher.eos_token_id) == []
    same = TokenizerAligner(student, student)
    assert all(same.undoing(token_id) == [] for token_id in student.convert_tokens_to_ids(["-", "a", "Ġ", "."]))
