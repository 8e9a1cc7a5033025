"""Text that a teacher rewrites or cannot spell, invalid UTF-8, unknown ids, and the space before the first word."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.alignment import texts
from tests.alignment.pairs import (
    PAIRS,
    aligner,
    assert_sound,
    bytes_without_a_token,
    joined,
    pair_id,
    reasons_to_drop,
    sampled,
    sampled_as_text,
    single_bytes,
    tokenizer,
)
from trl_xtok import TokenizerAligner


INVALID = {
    "lone continuation byte": b"a\x80b",
    "overlong slash": b"a\xc0\xafb",
    "surrogate half": b"a\xed\xa0\x80b",
    "byte beyond Unicode": b"a\xf5\x90\x80\x80b",
    "torn emoji before a letter": b"a\xf0\x9f\x98b",
    "two torn characters": b"\xe6\x9c\xe6\x9c\xba",
    "only continuation bytes": b"\x80\x80\x80 x",
    "torn character before a real replacement character": "a\ufffd".encode() + b"\xe6\x9c\xef\xbf\xbd!",
}


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        pytest.param(pair, text, id=f"{name}-{pair_id(pair)}")
        for name, text in INVALID.items()
        for pair in PAIRS
        # A student that lacks a byte's token cannot sample it.
        if not bytes_without_a_token(pair[0]) & set(text)
    ],
)
def test_invalid_utf8_is_spelled_with_the_teachers_byte_tokens(pair, text):
    student, teacher = pair
    student_ids = single_bytes(student, text)
    alignment = aligner(*pair).align(student_ids)
    assert set(alignment.dropped) <= reasons_to_drop(text, teacher)
    assert joined(teacher, alignment.teacher_ids) == text or alignment.dropped
    assert_sound(alignment, student, teacher, student_ids)


@pytest.mark.parametrize("teacher", ["unigram", "wordpiece"])
def test_invalid_utf8_is_dropped_for_a_teacher_without_byte_tokens(teacher):
    student_ids = [*sampled("llama3", "the work"), *single_bytes("llama3", b"\xff"), *sampled("llama3", " of others")]
    alignment = aligner("llama3", teacher).align(student_ids)
    assert alignment.dropped == {"invalid_utf8": 1}
    assert alignment.student_chunks[-1] == alignment.num_chunks - 1


@pytest.mark.parametrize("pair", PAIRS, ids=pair_id)
@pytest.mark.parametrize("unknown", [-1, -100, 10**6, 2**40], ids=["-1", "the ignore index", "padding", "huge"])
def test_unknown_ids_are_dropped_and_alignment_goes_on(pair, unknown):
    student, teacher = pair
    before, after = sampled(student, "One sentence. "), sampled(student, "Another one.")
    student_ids = [*before, unknown, *after]
    alignment = aligner(*pair).align(student_ids)
    assert alignment.dropped == {"unknown_id": 1}
    assert alignment.student_chunks[len(before)] == -1
    assert_sound(alignment, student, teacher, student_ids)


def test_characters_that_the_teacher_cannot_spell_are_dropped_and_alignment_goes_on():
    student_ids = sampled("llama3", "the License 机器学习 and the Work")
    alignment = aligner("llama3", "unigram").align(student_ids)
    assert set(alignment.dropped) == {"unspellable"}
    assert 0.5 < alignment.coverage < 1
    assert alignment.student_chunks[0] == 0
    assert alignment.student_chunks[-1] == alignment.num_chunks - 1
    scored = zip(alignment.teacher_ids, alignment.teacher_chunks, strict=True)
    assert tokenizer("unigram").unk_token_id not in [id for id, chunk in scored if chunk != -1]


@pytest.mark.parametrize(
    ("teacher", "text"),
    [
        pytest.param("jurassic2", "Apples ﬁnd ＡＢＣ and pears", id="ligature and full-width letters, nmt_nfkc"),
        pytest.param("unigram", "the ﬁle of the Work", id="ligature, nmt_nfkc without byte fallback"),
        pytest.param("jurassic2", "one\ntwo three", id="newline that becomes a space"),
        pytest.param("wordpiece", "the Quick fox and the dog", id="capitals that become small"),
        pytest.param("wordpiece", "a café near here", id="accents that are stripped"),
    ],
)
def test_text_that_the_teacher_rewrites_is_dropped_and_alignment_goes_on(teacher, text):
    student_ids = sampled("llama3", text)
    alignment = aligner("llama3", teacher).align(student_ids)
    assert set(alignment.dropped) == {"normalized"}
    assert 0 < alignment.coverage < 1
    assert alignment.student_chunks[0] == 0
    assert alignment.student_chunks[-1] == alignment.num_chunks - 1


@pytest.mark.parametrize("teacher", ["mistral1", "mistral1_metaspace", "gemma3", "jurassic2", "unigram"])
@pytest.mark.parametrize("text", ["the Work", " the Work", "  the Work", "\tthe Work"], ids=repr)
def test_the_first_word_neither_gains_nor_loses_a_space(teacher, text):
    student_ids = sampled("llama3", text)
    alignment = aligner("llama3", teacher).align(student_ids)
    kept = [id for id, chunk in zip(alignment.teacher_ids, alignment.teacher_chunks, strict=True) if chunk != -1]
    spelled = joined(teacher, kept).decode()
    assert text.endswith(spelled)
    assert alignment.coverage == 1.0 or "normalized" in alignment.dropped or "unspellable" in alignment.dropped
    if alignment.coverage == 1.0:
        assert spelled == text


def test_a_byte_level_prefix_space_is_not_added():
    settings = json.loads(tokenizer("smollm2").backend_tokenizer.to_str())
    settings["pre_tokenizer"]["add_prefix_space"] = True
    prefixing = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)), eos_token="<|im_end|>"
    )
    assert prefixing.encode("Hello") == sampled("smollm2", " Hello")
    alignment = TokenizerAligner(tokenizer("llama3"), prefixing).align(sampled("llama3", "Hello there"))
    assert joined("smollm2", alignment.teacher_ids) == b"Hello there"


@pytest.mark.parametrize("student", ["mistral1", "mistral1_metaspace"])
def test_a_sampled_first_piece_keeps_its_space(student):
    alignment = aligner(student, "llama3").align(sampled(student, "Hello"))
    assert joined("llama3", alignment.teacher_ids) == b" Hello"


def test_a_teacher_that_truncates_and_pads_is_asked_for_the_whole_text():
    """MiniLM's tokenizer.json cuts at 128 tokens and fills up to 128."""
    student_ids = sampled("llama3", "and the cat sat on the mat " * 60)
    alignment = aligner("llama3", "wordpiece").align(student_ids)
    assert len(alignment.teacher_ids) > 300
    assert tokenizer("wordpiece").pad_token_id not in alignment.teacher_ids
    assert tokenizer("wordpiece").cls_token_id not in alignment.teacher_ids
    assert alignment.coverage > 0.9


@pytest.mark.parametrize("name", ["qwen3", "mistral1", "unigram", "wordpiece"])
def test_the_callers_tokenizers_are_left_as_they_were(name):
    def state() -> tuple[str, list[int], bool]:
        markup = tokenizer(name)("a <|im_end|></s><think> [CLS] b")["input_ids"]
        return tokenizer(name).backend_tokenizer.to_str(), markup, tokenizer(name).split_special_tokens

    before = state()
    for pair in ((name, "smollm2"), ("smollm2", name)):
        aligner_of_pair = TokenizerAligner(*(tokenizer(side) for side in pair))
        aligner_of_pair.align(sampled_as_text(pair[0], "Use <|im_end|> and </s>: naïve 机器."))
        aligner_of_pair.canonical(sampled(pair[0], texts.CLEAN["english"]))
    assert state() == before
