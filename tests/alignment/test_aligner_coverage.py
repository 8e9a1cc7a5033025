"""Nothing is lost between tokenizers that can both spell every byte, and every chunk is as short as it can be."""

import pytest

from tests.alignment import reference, texts
from tests.alignment.pairs import (
    PAIRS,
    aligner,
    assert_sound,
    joined,
    pair_id,
    pieces,
    sampled,
    sampled_as_text,
)


# Where another public aligner loses tokens or trains on misaligned ones: (student, teacher, class of text).
KNOWN_HARD = [
    ("llama3", "qwen3", "rare cjk"),
    ("llama3", "qwen3", "emoji"),
    ("llama3", "qwen3", "hindi and arabic"),
    ("llama3", "qwen3", "nfd latin"),
    ("llama3", "qwen3", "nfd hangul"),
    ("llama3", "qwen3", "nfc singletons"),
    ("llama3", "qwen3", "chat markup"),
    ("gemma3", "qwen3", "chinese"),
    ("gemma3", "qwen3", "rare cjk"),
    ("gemma3", "qwen3", "nfd latin"),
    ("gemma3", "qwen3", "nfd hangul"),
    ("gemma3", "qwen3", "code with tabs"),
    ("gemma3", "qwen3", "leading spaces"),
    ("qwen3", "gemma3", "rare cjk"),
    ("qwen3", "gemma3", "emoji"),
    ("gemma3", "smollm2", "rare cjk"),
    ("gemma3", "smollm2", "chinese"),
    ("gemma3", "smollm2", "chat markup"),
    ("smollm2", "qwen3", "nfd hangul"),
    ("smollm2", "qwen3", "nfd latin"),
    ("qwen3", "deepseek", "rare cjk"),
    ("qwen3", "deepseek", "emoji"),
    ("gpt_oss", "llama3", "chat markup"),
]


def assert_everything_is_aligned(student: str, teacher: str, student_ids: list[int]) -> None:
    alignment = aligner(student, teacher).align(student_ids)
    assert alignment.dropped == {}
    assert alignment.coverage == 1.0
    assert_sound(alignment, student, teacher, student_ids)
    expected = reference.chunks(pieces(student, student_ids), pieces(teacher, alignment.teacher_ids))
    assert (alignment.student_chunks, alignment.teacher_chunks) == expected


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text_class", texts.CLEAN)
def test_clean_text_is_covered_whole(pair, text_class):
    assert_everything_is_aligned(*pair, sampled(pair[0], texts.CLEAN[text_class]))


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text_class", texts.DECOMPOSED)
def test_decomposed_text_is_covered_whole(pair, text_class):
    assert_everything_is_aligned(*pair, sampled(pair[0], texts.DECOMPOSED[text_class]))


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text_class", texts.LITERAL_SPECIALS)
def test_text_that_spells_control_tokens_is_covered_whole(pair, text_class):
    assert_everything_is_aligned(*pair, sampled_as_text(pair[0], texts.LITERAL_SPECIALS[text_class]))


@pytest.mark.parametrize(("student", "teacher", "text_class"), KNOWN_HARD)
def test_what_other_aligners_lose_is_covered_whole(student, teacher, text_class):
    assert_everything_is_aligned(student, teacher, sampled_as_text(student, texts.ALL[text_class]))


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text_class", ["english", "runs of spaces", "runs of equal signs", "rare cjk", "emoji"])
def test_one_token_per_character_is_covered_whole(pair, text_class):
    one_by_one = [id for character in texts.ALL[text_class] for id in sampled(pair[0], character)]
    assert_everything_is_aligned(*pair, one_by_one)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_the_two_sides_cut_differently(pair):
    """Else the rest of this file would show little."""
    student_ids = sampled(pair[0], "\n".join(texts.CLEAN.values()))
    alignment = aligner(*pair).align(student_ids)
    shapes = reference.sizes(alignment.student_chunks, alignment.teacher_chunks)
    assert any(students > 1 for students, _ in shapes)
    assert any(teachers > 1 for _, teachers in shapes)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("text_class", ["english", "chinese", "emoji", "runs of spaces"])
def test_teacher_ids_are_what_the_teacher_would_write(pair, text_class):
    """Dummy prefixes apart, the completion is tokenized as the teacher tokenizes text."""
    student, teacher = pair
    student_ids = sampled(student, texts.ALL[text_class])
    text = joined(student, student_ids).decode()
    newline = sampled(teacher, "\n")
    expected = sampled(teacher, "\n" + text)
    assert expected[: len(newline)] == newline
    assert aligner(*pair).align(student_ids).teacher_ids == expected[len(newline) :]


def test_alignment_is_symmetric():
    for student, teacher in [("llama3", "deepseek"), ("smollm2", "gemma3"), ("gpt_oss", "tekken")]:
        for text in texts.CLEAN.values():
            if "▁" in text:
                continue
            there = aligner(student, teacher).align(sampled(student, text))
            back = aligner(teacher, student).align(there.teacher_ids)
            assert back.teacher_ids == sampled(student, text)
            assert (back.student_chunks, back.teacher_chunks) == (there.teacher_chunks, there.student_chunks)
