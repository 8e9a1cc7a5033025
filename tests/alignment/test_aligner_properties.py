"""What holds for every text and every sequence of ids, on real tokenizers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.alignment import reference, texts
from tests.alignment.pairs import (
    PAIRS,
    aligner,
    assert_sound,
    joined,
    pair_id,
    pieces,
    reasons_to_drop,
    sampled,
    sampled_as_text,
    tokenizer,
)


words = st.sampled_from([word for text in texts.ALL.values() for word in (text, *text.split(" "))])
any_text = st.lists(st.one_of(words, st.text(max_size=12)), max_size=8).map("".join)
any_ids = st.one_of(st.integers(0, 200_000), st.integers(0, 600), st.integers(-3, 2**33))
# With tokenizers that rewrite text or cannot spell all of it.
ALL_PAIRS = [
    *PAIRS,
    ("llama3", "jurassic2"),
    ("gemma3", "unigram"),
    ("llama3", "wordpiece"),
    ("mistral1", "wordpiece"),
    ("jurassic2", "gemma3"),
    ("unigram", "llama3"),
    ("wordpiece", "qwen3"),
]
SAME = ["smollm2", "gemma3", "qwen3", "llama3", "mistral1", "jurassic2"]


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@settings(max_examples=40)
@given(text=any_text)
def test_any_text_is_aligned_as_the_reference_aligns_it(pair, text):
    student, teacher = pair
    student_ids = sampled_as_text(student, text)
    alignment = aligner(*pair).align(student_ids)
    assert_sound(alignment, student, teacher, student_ids)
    assert set(alignment.dropped) <= reasons_to_drop(joined(student, student_ids), teacher)
    if not alignment.dropped:
        assert reference.canonical(joined(teacher, alignment.teacher_ids)) == reference.canonical(
            joined(student, student_ids)
        )
        assert (alignment.student_chunks, alignment.teacher_chunks) == reference.chunks(
            pieces(student, student_ids),
            pieces(teacher, alignment.teacher_ids),
        )


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@settings(max_examples=40)
@given(data=st.data())
def test_random_tokens_are_scored_whole(pair, data):
    """The noise of an early rollout: mostly invalid UTF-8, never what the student's tokenizer would have written."""
    student, teacher = pair
    student_ids = data.draw(st.lists(st.integers(0, len(tokenizer(student)) - 1), max_size=40))
    alignment = aligner(*pair).align(student_ids)
    assert_sound(alignment, student, teacher, student_ids)
    assert set(alignment.dropped) <= reasons_to_drop(joined(student, student_ids), teacher) | {"cut_character"}
    if not alignment.dropped and alignment.end_chunk == -1:
        assert (alignment.student_chunks, alignment.teacher_chunks) == reference.chunks(
            pieces(student, student_ids),
            pieces(teacher, alignment.teacher_ids),
        )


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=pair_id)
@settings(max_examples=40)
@given(student_ids=st.lists(any_ids, max_size=40))
def test_any_ids_are_aligned_or_counted(pair, student_ids):
    alignment = aligner(*pair).align(student_ids)
    assert_sound(alignment, *pair, student_ids)
    known = range(len(tokenizer(pair[0])))
    unknown = [i for i, id in enumerate(student_ids) if id not in known]
    assert all(alignment.student_chunks[i] == -1 for i in unknown)
    assert alignment.dropped.get("unknown_id", 0) >= len(unknown)


@pytest.mark.parametrize("pair", ALL_PAIRS, ids=pair_id)
@settings(max_examples=30)
@given(text=any_text)
def test_any_text_is_aligned_or_counted(pair, text):
    student_ids = sampled_as_text(pair[0], text)
    alignment = aligner(*pair).align(student_ids)
    assert_sound(alignment, *pair, student_ids)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@settings(max_examples=20)
@given(text=any_text)
def test_student_and_teacher_can_change_places(pair, text):
    student, teacher = pair
    there = aligner(student, teacher).align(sampled(student, text))
    if there.dropped or joined(teacher, there.teacher_ids) != joined(student, sampled(student, text)):
        return
    back = aligner(teacher, student).align(there.teacher_ids)
    if back.teacher_ids == sampled(student, text):
        assert (back.student_chunks, back.teacher_chunks) == (there.teacher_chunks, there.student_chunks)


@pytest.mark.parametrize("name", SAME)
@settings(max_examples=40)
@given(data=st.data())
def test_identical_tokenizers_give_one_chunk_per_token(name, data):
    """Also for ids that the tokenizer would not have written itself, invalid UTF-8 and control tokens."""
    known = st.integers(0, len(tokenizer(name)) - 1)
    student_ids = data.draw(st.one_of(st.lists(known, max_size=40), any_text.map(lambda text: sampled(name, text))))
    alignment = aligner(name, name).align(student_ids)
    assert aligner(name, name).same_vocabulary
    assert alignment.student_chunks == alignment.teacher_chunks == list(range(len(student_ids)))
    assert (alignment.num_chunks, alignment.coverage, alignment.dropped) == (len(student_ids), 1.0, {})
    assert alignment.teacher_ids[:-1] == student_ids[:-1]
    assert alignment.end_chunk != -1 or alignment.teacher_ids == student_ids


@pytest.mark.parametrize("name", SAME)
@settings(max_examples=30)
@given(text=any_text)
def test_a_canonical_completion_agrees_with_its_own_encoding(name, text):
    student_ids = sampled(name, text)
    canonical = aligner(name, "qwen3").canonical(student_ids)
    if name not in ("mistral1", "jurassic2") and "▁" not in text:
        assert canonical.teacher_ids == student_ids
        assert canonical.student_chunks == list(range(len(student_ids)))
    assert len(canonical.student_chunks) == len(student_ids)


@pytest.mark.parametrize("name", ["smollm2", "gemma3", "qwen3", "llama3"])
def test_a_drifted_completion_is_compared_with_its_canonical_encoding(name):
    text = texts.CLEAN["english"]
    one_by_one = [id for character in text for id in sampled(name, character)]
    canonical = aligner(name, "tekken").canonical(one_by_one)
    assert canonical.teacher_ids == sampled(name, text) != one_by_one
    assert (canonical.student_chunks, canonical.teacher_chunks) == reference.chunks(
        pieces(name, one_by_one), pieces(name, canonical.teacher_ids)
    )
    assert canonical.coverage == 1.0


@pytest.mark.parametrize("marker", ["<think>", "<|im_start|>"])
def test_the_canonical_path_keeps_the_stop_token_and_sampled_markup(marker):
    markup, stop = tokenizer("qwen3").convert_tokens_to_ids([marker, "<|im_end|>"])
    drifted = [id for character in "Well, no" for id in sampled("qwen3", character)]
    canonical = aligner("qwen3", "llama3").canonical([*drifted, markup, *drifted, stop])
    assert canonical.teacher_ids == [*sampled("qwen3", "Well, no"), markup, *sampled("qwen3", "Well, no"), stop]
    assert canonical.end_chunk == canonical.num_chunks - 1
    assert canonical.coverage == 1.0


@settings(max_examples=30)
@given(text=any_text, extra=st.lists(st.sampled_from([-1, 10**7]), min_size=1, max_size=4))
def test_padding_after_the_completion_changes_nothing_before_it(text, extra):
    """A stop token that is followed by padding no longer ends the completion, so none stands here."""
    student_ids = sampled("gemma3", text)
    alone = aligner("gemma3", "llama3").align(student_ids)
    padded = aligner("gemma3", "llama3").align([*student_ids, *extra])
    assert padded.teacher_ids == alone.teacher_ids
    assert padded.student_chunks == alone.student_chunks + [-1] * len(extra)
