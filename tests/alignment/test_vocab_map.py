"""Shared tokens and prefix classes of real vocabularies."""

import random
from collections import defaultdict

import pytest

from tests.alignment.pairs import pair_id, tokenizer
from trl_xtok.alignment.spelling import Spelling
from trl_xtok.alignment.text_encoder import TextEncoder
from trl_xtok.alignment.vocab_map import prefix_classes, shared_tokens


PAIRS = [("llama3", "qwen3"), ("smollm2", "mistral1"), ("mistral1", "llama3")]


def encoders(pair):
    return TextEncoder(tokenizer(pair[0]), unicode_forms=False), TextEncoder(tokenizer(pair[1]))


def first_token(encoder, piece):
    spelling = Spelling()
    encoder.spell(piece, spelling)
    return spelling.ids[0]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_shared_tokens_spell_the_same_bytes_and_are_all_there(pair):
    student, teacher = encoders(pair)
    shared = shared_tokens(student, teacher, ends={})
    assert len(set(shared.student_ids)) == len(set(shared.teacher_ids)) == len(shared.student_ids)
    for ours, theirs in zip(shared.student_ids, shared.teacher_ids, strict=True):
        assert student.table.pieces[ours] == teacher.table.pieces[theirs]
    control = {token_id for side in (student, teacher) for token_id in side.table.markers.values()}
    texts = [
        {piece for token_id, piece in enumerate(side.table.pieces) if piece and token_id not in control}
        for side in (student, teacher)
    ]
    assert texts[0] & texts[1] <= {student.table.pieces[token_id] for token_id in shared.student_ids}


def test_a_character_goes_before_the_byte_it_is_made_of():
    """Mistral spells `a` as a piece and as `<0x61>`."""
    student, teacher = encoders(("mistral1", "llama3"))
    shared = shared_tokens(student, teacher, ends={})
    assert tokenizer("mistral1").convert_tokens_to_ids("a") in shared.student_ids
    assert tokenizer("mistral1").convert_tokens_to_ids("<0x61>") not in shared.student_ids


def test_ends_of_turn_are_one_event():
    student, teacher = encoders(("llama3", "qwen3"))
    shared = shared_tokens(student, teacher, ends={128_009: 151_645})
    assert shared.teacher_ids[shared.student_ids.index(128_009)] == 151_645
    classes = prefix_classes(student, teacher, ends={128_009: 151_645})
    assert classes.student_classes[128_009] == classes.teacher_classes[151_645] >= 0
    assert classes.student_classes.count(classes.student_classes[128_009]) == 1


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_a_token_without_equal_is_in_the_class_of_what_the_other_side_would_begin_with(pair):
    student, teacher = encoders(pair)
    classes = prefix_classes(student, teacher, ends={})
    generator = random.Random(0)
    sides = [
        (student, classes.student_classes, teacher, classes.teacher_classes),
        (teacher, classes.teacher_classes, student, classes.student_classes),
    ]
    for side, own, other, others in sides:
        control = set(side.table.markers.values())
        for token_id in generator.sample(range(len(side.table.pieces)), 500):
            piece = side.table.pieces[token_id]
            if piece and token_id not in control and piece not in other.table.pieces:
                first = first_token(other, piece)
                assert own[token_id] == (-1 if first is None else others[first])


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_every_class_has_tokens_of_both_sides(pair):
    classes = prefix_classes(*encoders(pair), ends={})
    every = set(range(classes.num_classes))
    assert set(classes.student_classes) - {-1} == set(classes.teacher_classes) - {-1} == every


def test_numbers_of_several_digits_are_with_their_first_digit():
    student, teacher = tokenizer("llama3"), tokenizer("qwen3")
    classes = prefix_classes(*encoders(("llama3", "qwen3")), ends={})
    ours = {classes.student_classes[student.convert_tokens_to_ids(number)] for number in ("1", "12", "123")}
    assert ours == {classes.teacher_classes[teacher.convert_tokens_to_ids("1")]}
    assert classes.student_classes[student.convert_tokens_to_ids("2")] not in ours


def test_equal_vocabularies_have_one_class_per_token():
    """Tokens with equal bytes excepted."""
    encoder = TextEncoder(tokenizer("llama3"))
    classes = prefix_classes(encoder, encoder, ends={})
    assert classes.student_classes == classes.teacher_classes
    members = defaultdict(set)
    for token_id, number in enumerate(classes.student_classes):
        members[number].add(encoder.table.pieces[token_id])
    del members[-1]
    assert all(len(pieces) == 1 for pieces in members.values())
