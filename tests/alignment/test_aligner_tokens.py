"""Tokens that are not plain text: markup and control tokens, spelled or sampled, and added tokens."""

from functools import cache

import pytest
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from tests.alignment import texts
from tests.alignment.pairs import (
    BYTE_LEVEL,
    PAIRS,
    SENTENCEPIECE,
    aligner,
    assert_sound,
    joined,
    pair_id,
    sampled,
    sampled_as_text,
    single_bytes,
    tokenizer,
)
from trl_xtok import TokenizerAligner
from trl_xtok.errors import TokenizerError


SPELLED = [
    "<|im_end|>",
    "</s>",
    "<s>",
    "<think>",
    "</think>",
    "<tool_call>",
    "<eos>",
    "<end_of_turn>",
    "<unk>",
    "<pad>",
]
SPELLED += ["<|eot_id|>", "<|endoftext|>", "<|return|>", "<｜end▁of▁sentence｜>", "[INST]", "[MASK]", "<|im_start|>"]


@cache
def markup_ids(name: str) -> set[int]:
    """Added tokens that mean something else than the text they spell; Gemma's HTML and whitespace do not."""
    added = tokenizer(name).added_tokens_decoder
    return {id for id, token in added.items() if token.special or token.content in SPELLED}


@pytest.mark.parametrize("teacher", [*BYTE_LEVEL, *SENTENCEPIECE, "jurassic2", "unigram", "wordpiece"])
@pytest.mark.parametrize("spelled", SPELLED)
def test_text_that_spells_markup_never_becomes_markup(teacher, spelled):
    student_ids = sampled_as_text("llama3", f"a {spelled}{spelled} b")
    assert joined("llama3", student_ids).decode() == f"a {spelled}{spelled} b"
    alignment = aligner("llama3", teacher).align(student_ids)
    scored = [id for id, chunk in zip(alignment.teacher_ids, alignment.teacher_chunks, strict=True) if chunk != -1]
    assert not markup_ids(teacher) & set(scored)
    assert alignment.end_chunk == -1


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("spelled", ["<0x0A>", "<0xF0>", "▁", "▁▁", "Ġ", "Ċ"])
def test_text_that_looks_like_a_raw_piece_stays_what_it_is(pair, spelled):
    student, teacher = pair
    # A SentencePiece student can spell a real `▁` with byte tokens only.
    text = f"x{spelled}y".encode()
    student_ids = single_bytes(student, text)
    alignment = aligner(*pair).align(student_ids)
    assert alignment.coverage == 1.0
    assert joined(teacher, alignment.teacher_ids) == text
    assert_sound(alignment, student, teacher, student_ids)


@pytest.mark.parametrize("teacher", ["gemma3", "mistral1", "jurassic2"])
def test_the_name_of_a_byte_token_is_never_scored_as_that_byte(teacher):
    """A Unigram teacher takes the byte token itself out of plain text."""
    student_ids = sampled_as_text("llama3", "at <0x41><0x0A> and <0x62> end")
    alignment = aligner("llama3", teacher).align(student_ids)
    assert_sound(alignment, "llama3", teacher, student_ids)
    assert alignment.coverage > 0.2
    assert alignment.student_chunks[-1] == alignment.num_chunks - 1


@pytest.mark.parametrize(
    ("student", "teacher", "content"),
    [("qwen3", "qwen3_base", "<think>"), ("qwen3", "qwen3_base", "</tool_call>"), ("gemma3", "gemma3", "<table>")],
)
def test_a_sampled_added_token_is_the_teachers_added_token(student, teacher, content):
    student_ids = [tokenizer(student).convert_tokens_to_ids(content), *sampled(student, "\nhm\n")]
    alignment = aligner(student, teacher).align(student_ids)
    assert alignment.teacher_ids[0] == tokenizer(teacher).convert_tokens_to_ids(content)
    assert alignment.student_chunks[0] == alignment.teacher_chunks[0] == 0
    assert alignment.coverage == 1.0


def with_added_tokens(name: str, *contents: str) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with further added tokens that are not special."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer(name).backend_tokenizer.to_str()),
        eos_token=tokenizer(name).eos_token,
    )
    copy.add_tokens(list(contents))
    return copy


@pytest.mark.parametrize("student", ["smollm2", "mistral1"])
def test_think_maps_to_think_between_different_vocabularies(student):
    tokens = with_added_tokens(student, "<think>", "</think>")
    think = tokens.convert_tokens_to_ids("<think>")
    student_ids = [think, *sampled(student, "hm"), tokens.convert_tokens_to_ids("</think>")]
    alignment = TokenizerAligner(tokens, tokenizer("qwen3")).align(student_ids)
    assert alignment.teacher_ids[0] == tokenizer("qwen3").convert_tokens_to_ids("<think>")
    assert alignment.teacher_ids[-1] == tokenizer("qwen3").convert_tokens_to_ids("</think>")
    assert alignment.student_chunks[0] == alignment.teacher_chunks[0] == 0
    assert alignment.student_chunks.count(alignment.num_chunks - 1) == 1
    assert alignment.coverage == 1.0


def test_think_is_text_for_a_teacher_that_has_no_such_token():
    student_ids = [tokenizer("qwen3").convert_tokens_to_ids("<think>"), *sampled("qwen3", "\nhm")]
    alignment = aligner("qwen3", "llama3").align(student_ids)
    assert joined("llama3", alignment.teacher_ids) == b"<think>\nhm"
    assert alignment.coverage == 1.0
    assert_sound(alignment, "qwen3", "llama3", student_ids)


@pytest.mark.parametrize(
    ("student", "teacher", "content"),
    [
        ("qwen3", "llama3", "<|im_start|>"),
        ("qwen3", "smollm2", "<|im_start|>"),
        ("llama3", "gemma3", "<|start_header_id|>"),
        ("gemma3", "qwen3", "<unused7>"),
        ("tekken", "mistral1", "[INST]"),
        ("mistral1", "tekken", "<s>"),
    ],
)
def test_a_control_token_inside_a_completion_is_scored_as_text(student, teacher, content):
    """Even where the teacher has a control token of the same content: its context must not be forged."""
    middle = tokenizer(student).convert_tokens_to_ids(content)
    student_ids = [*sampled(student, "Hi"), middle, *sampled(student, "there")]
    alignment = aligner(student, teacher).align(student_ids)
    assert alignment.coverage == 1.0
    assert not markup_ids(teacher) & set(alignment.teacher_ids)
    assert content.encode() in joined(teacher, alignment.teacher_ids)
    assert_sound(alignment, student, teacher, student_ids)


def test_a_control_token_stays_itself_between_equal_vocabularies():
    student_ids = [*sampled("qwen3", "Hi"), tokenizer("qwen3").convert_tokens_to_ids("<|im_start|>"), 0]
    assert aligner("qwen3", "qwen3_base").same_vocabulary
    assert aligner("qwen3", "qwen3_base").align(student_ids).teacher_ids == student_ids


def test_vocabularies_that_differ_by_an_added_token_only_are_not_the_same():
    """As those of Qwen2.5 and Qwen3; text is still cut one to one."""
    more = with_added_tokens("smollm2", "<think>")
    both = TokenizerAligner(tokenizer("smollm2"), more)
    student_ids = sampled("smollm2", texts.CLEAN["english"])
    assert not both.same_vocabulary
    assert both.align(student_ids).teacher_ids == student_ids
    assert both.align(student_ids).student_chunks == list(range(len(student_ids)))


def test_a_tokenizer_that_is_not_fast_is_refused():
    with pytest.raises(TokenizerError, match="ByT5Tokenizer"):
        TokenizerAligner(ByT5Tokenizer(), tokenizer("smollm2"))
    with pytest.raises(TokenizerError, match="ByT5Tokenizer"):
        TokenizerAligner(tokenizer("smollm2"), ByT5Tokenizer())


@pytest.mark.parametrize("pair", [("qwen3", "llama3"), ("smollm2", "deepseek"), ("mistral1", "mistral1_metaspace")])
def test_same_vocabulary_is_decided_by_content(pair):
    assert aligner(*pair).same_vocabulary == (pair == ("mistral1", "mistral1_metaspace"))
