"""The end of a completion: stop tokens, the length limit, and what stands in for them on the teacher's side."""

import pytest

from tests.alignment.pairs import PAIRS, aligner, assert_sound, pair_id, sampled, tokenizer
from trl_xtok import TokenizerAligner


def id_of(name: str, content: str) -> int:
    return tokenizer(name).convert_tokens_to_ids(content)


@pytest.mark.parametrize(
    ("student", "stop", "teacher", "end"),
    [
        ("smollm2", "<|im_end|>", "gemma3", "<eos>"),
        ("gemma3", "<eos>", "smollm2", "<|im_end|>"),
        ("llama3", "<|eot_id|>", "qwen3", "<|im_end|>"),
        pytest.param(
            "llama3", "<|eot_id|>", "qwen3_base", "<|im_end|>", id="the template knows better than eos_token"
        ),
        ("qwen3", "<|im_end|>", "llama3", "<|eot_id|>"),
        ("qwen3_base", "<|endoftext|>", "llama3", "<|eot_id|>"),
        pytest.param("qwen3_base", "<|im_end|>", "llama3", "<|eot_id|>", id="the end of turn is a stop token too"),
        ("qwen3", "<|im_end|>", "deepseek", "<｜end▁of▁sentence｜>"),
        ("deepseek", "<｜end▁of▁sentence｜>", "mistral1", "</s>"),
        ("mistral1", "</s>", "gpt_oss", "<|return|>"),
        ("tekken", "</s>", "jurassic2", "<|endoftext|>"),
    ],
)
def test_stop_token_and_end_of_turn_are_one_chunk(student, stop, teacher, end):
    student_ids = [*sampled(student, "Done."), id_of(student, stop)]
    alignment = aligner(student, teacher).align(student_ids)
    assert alignment.teacher_ids[-1] == aligner(student, teacher).teacher_end_id == id_of(teacher, end)
    assert alignment.end_chunk == alignment.num_chunks - 1
    assert alignment.student_chunks.count(alignment.end_chunk) == 1
    assert alignment.teacher_chunks.count(alignment.end_chunk) == 1
    assert alignment.coverage == 1.0
    assert_sound(alignment, student, teacher, student_ids)


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_without_a_stop_token_the_teacher_gets_no_end(pair):
    alignment = aligner(*pair).align(sampled(pair[0], "It goes on and"))
    assert alignment.end_chunk == -1
    assert aligner(*pair).teacher_end_id not in alignment.teacher_ids


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_a_stop_token_changes_nothing_before_it(pair):
    student_ids = sampled(pair[0], "naïve 🏳️‍🌈 text\n\n")
    stop = min(aligner(*pair).student_stop_ids)
    open_end, closed = (aligner(*pair).align(ids) for ids in (student_ids, [*student_ids, stop]))
    assert closed.teacher_ids[:-1] == open_end.teacher_ids
    assert closed.student_chunks[:-1] == open_end.student_chunks
    assert closed.teacher_chunks[:-1] == open_end.teacher_chunks


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_empty_completion(pair):
    alignment = aligner(*pair).align([])
    assert alignment.teacher_ids == alignment.student_chunks == alignment.teacher_chunks == []
    assert (alignment.num_chunks, alignment.end_chunk, alignment.dropped) == (0, -1, {})


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
def test_only_a_stop_token(pair):
    alignment = aligner(*pair).align([tokenizer(pair[0]).eos_token_id])
    assert alignment.teacher_ids == [aligner(*pair).teacher_end_id]
    assert alignment.student_chunks == alignment.teacher_chunks == [0]
    assert (alignment.num_chunks, alignment.end_chunk, alignment.coverage) == (1, 0, 1.0)


def test_only_the_last_stop_token_ends_the_completion():
    stop = id_of("llama3", "<|eot_id|>")
    student_ids = [*sampled("llama3", "a"), stop, *sampled("llama3", " b"), stop]
    alignment = aligner("llama3", "qwen3").align(student_ids)
    assert alignment.teacher_ids.count(id_of("qwen3", "<|im_end|>")) == 1
    assert alignment.teacher_ids[-1] == id_of("qwen3", "<|im_end|>")
    assert alignment.coverage == 1.0
    assert_sound(alignment, "llama3", "qwen3", student_ids)


def test_a_stop_token_followed_by_text_is_no_end():
    student_ids = [id_of("llama3", "<|eot_id|>"), *sampled("llama3", "more")]
    alignment = aligner("llama3", "qwen3").align(student_ids)
    assert alignment.end_chunk == -1
    assert id_of("qwen3", "<|im_end|>") not in alignment.teacher_ids
    assert_sound(alignment, "llama3", "qwen3", student_ids)


def test_default_stop_ids_are_eos_and_the_end_of_turn():
    assert set(aligner("qwen3_base", "llama3").student_stop_ids) == {
        id_of("qwen3_base", "<|endoftext|>"),
        id_of("qwen3_base", "<|im_end|>"),
    }


def test_given_stop_ids_and_end_id_are_used():
    stop, end = id_of("llama3", "<|eom_id|>"), id_of("qwen3", "<|endoftext|>")
    given = TokenizerAligner(tokenizer("llama3"), tokenizer("qwen3"), student_stop_ids=[stop], teacher_end_id=end)
    assert (set(given.student_stop_ids), given.teacher_end_id) == ({stop}, end)
    assert given.align([*sampled("llama3", "a"), stop]).teacher_ids[-1] == end
    assert given.align([*sampled("llama3", "a"), id_of("llama3", "<|eot_id|>")]).end_chunk == -1


def test_a_teacher_without_an_end_of_turn_drops_the_stop_token():
    student_ids = [*sampled("llama3", "all done"), id_of("llama3", "<|eot_id|>")]
    alignment = aligner("llama3", "wordpiece").align(student_ids)
    assert alignment.dropped == {"no_teacher_end": 1}
    assert (alignment.end_chunk, alignment.student_chunks[-1]) == (-1, -1)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_cut_off_by_the_length_limit_is_dropped(cut):
    """SmolLM2 has no token for this character, so its bytes are sampled one by one."""
    byte_ids = sampled("smollm2", "𪚥")
    assert len(byte_ids) > 3
    student_ids = [*sampled("smollm2", "Look:"), *byte_ids[:cut]]
    alignment = aligner("smollm2", "gemma3").align(student_ids)
    assert alignment.dropped == {"cut_character": cut}
    assert alignment.student_chunks[-cut:] == [-1] * cut
    assert_sound(alignment, "smollm2", "gemma3", student_ids)


def test_a_character_that_the_student_broke_off_itself_is_invalid_text():
    """A stop token follows, so the length limit is not to blame."""
    student_ids = [*sampled("smollm2", "Look:"), *sampled("smollm2", "𪚥")[:2], id_of("smollm2", "<|im_end|>")]
    alignment = aligner("smollm2", "gemma3").align(student_ids)
    assert alignment.dropped == {}
    assert alignment.end_chunk == alignment.num_chunks - 1
    assert_sound(alignment, "smollm2", "gemma3", student_ids)
