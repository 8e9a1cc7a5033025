"""Which real tokenizers are put together, what a student samples for a text, and what every alignment must satisfy."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import groupby

import pytest
from transformers import PreTrainedTokenizerFast

from tests import real_tokenizers
from tests.alignment import reference
from tests.conversion import printable_bytes
from trl_xtok import Alignment, TokenizerAligner


BYTE_LEVEL = ("smollm2", "deepseek", "qwen3", "llama3", "gpt_oss", "tekken")
SENTENCEPIECE = ("gemma3", "mistral1", "mistral1_metaspace")

# Student, teacher. All of them can spell every byte, so nothing may be lost; each family stands on either side.
PAIRS = [
    ("llama3", "qwen3"),
    ("qwen3", "llama3"),
    ("gemma3", "qwen3"),
    ("qwen3", "gemma3"),
    ("gemma3", "smollm2"),
    ("smollm2", "gemma3"),
    ("smollm2", "qwen3"),
    ("qwen3", "deepseek"),
    ("deepseek", "mistral1"),
    ("gpt_oss", "llama3"),
    ("llama3", "gpt_oss"),
    ("mistral1", "tekken"),
    ("tekken", "mistral1_metaspace"),
    ("mistral1", "gemma3"),
    ("gemma3", "mistral1"),
    ("mistral1_metaspace", "deepseek"),
]


def pair_id(pair: tuple[str, str]) -> str:
    return f"{pair[0]} from {pair[1]}"


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return {
        function.__name__: function
        for function in (
            real_tokenizers.deepseek,
            real_tokenizers.gemma3,
            real_tokenizers.gpt_oss,
            real_tokenizers.jurassic2,
            real_tokenizers.llama3,
            real_tokenizers.mistral1,
            real_tokenizers.mistral1_metaspace,
            real_tokenizers.qwen3,
            real_tokenizers.qwen3_base,
            real_tokenizers.smollm2,
            real_tokenizers.tekken,
            real_tokenizers.unigram,
            real_tokenizers.wordpiece,
        )
    }[name]()


@cache
def aligner(student: str, teacher: str) -> TokenizerAligner:
    return TokenizerAligner(tokenizer(student), tokenizer(teacher))


def sampled(name: str, text: str) -> list[int]:
    """Ids that a student may sample for a text: its canonical encoding."""
    return tokenizer(name).encode(text, add_special_tokens=False)


def sampled_as_text(name: str, text: str) -> list[int]:
    """Ids that spell a text without any added token: it is encoded in parts, cut inside whatever looks like markup."""
    parts = [part for part in re.split(r"(?<=[<\[｜|/])", text) if part]
    if name not in ("mistral1", "mistral1_metaspace"):
        return [id for part in parts for id in sampled(name, part)]
    # The newline takes the space that these put before every text; it is a token of its own, so it can be cut off.
    newline = sampled(name, "\n")
    return [id for part in parts for id in sampled(name, "\n" + part)[len(newline) :]]


def pieces(name: str, ids: Sequence[int]) -> list[bytes]:
    return reference.spell(tokenizer(name), ids)


def joined(name: str, ids: Sequence[int]) -> bytes:
    return b"".join(pieces(name, ids))


@cache
def bytes_without_a_token(name: str) -> frozenset[int]:
    """SmolLM2 lacks some control characters and bytes of rare characters; all others have 256 byte tokens."""
    if name != "smollm2":
        return frozenset()
    vocab = tokenizer(name).get_vocab()
    return frozenset(byte for byte, shown in printable_bytes().items() if shown not in vocab)


def single_bytes(name: str, text: bytes) -> list[int]:
    """One token per byte, for a text that `name` can sample so."""
    assert not bytes_without_a_token(name) & set(text)
    pieces = [printable_bytes()[byte] if name in BYTE_LEVEL else f"<0x{byte:02X}>" for byte in text]
    return tokenizer(name).convert_tokens_to_ids(pieces)


def reasons_to_drop(text: bytes, teacher: str) -> set[str]:
    """Why a teacher that spells bytes may still have to leave out a part of a completion without a stop token."""
    return {"unspellable", "invalid_utf8"} if bytes_without_a_token(teacher) & set(text) else set()


def spans(numbers: Sequence[int]) -> list[range]:
    """The tokens of each chunk, in chunk order."""
    found: list[range] = []
    for number, group in groupby(range(len(numbers)), key=numbers.__getitem__):
        indices = list(group)
        if number != -1:
            assert number == len(found), f"Chunk {number} follows chunk {len(found) - 1} in {numbers}."
            found.append(range(indices[0], indices[-1] + 1))
    return found


def assert_sound(alignment: Alignment, student: str, teacher: str, student_ids: Sequence[int]) -> None:
    """Chunks are numbered in text order and spell the same text on both sides; what is in none is counted.

    The end chunk is left out of the comparison of texts: two ends of turn are the same event in other words.
    """
    assert len(alignment.student_chunks) == len(student_ids)
    assert len(alignment.teacher_chunks) == len(alignment.teacher_ids)
    student_spans, teacher_spans = spans(alignment.student_chunks), spans(alignment.teacher_chunks)
    assert len(student_spans) == len(teacher_spans) == alignment.num_chunks
    for number, (left, right) in enumerate(zip(student_spans, teacher_spans, strict=True)):
        student_text = joined(student, [student_ids[i] for i in left])
        teacher_text = joined(teacher, [alignment.teacher_ids[j] for j in right])
        if "wordpiece" in (student, teacher):
            # WordPiece does not say where spaces stand.
            student_text, teacher_text = student_text.replace(b" ", b""), teacher_text.replace(b" ", b"")
        if number != alignment.end_chunk:
            assert reference.canonical(student_text) == reference.canonical(teacher_text)
    assert_counted(alignment, student, student_ids)


def assert_counted(alignment: Alignment, student: str, student_ids: Sequence[int]) -> None:
    """Every token that is in no chunk has a reason, and every token that spells text has its bytes."""
    in_a_chunk = [chunk != -1 for chunk in alignment.student_chunks]
    assert [reason is None for reason in alignment.drop_reasons] == in_a_chunk
    assert alignment.dropped == Counter(reason for reason in alignment.drop_reasons if reason is not None)
    assert alignment.coverage == pytest.approx(sum(in_a_chunk) / len(student_ids) if student_ids else 1.0)
    ended = alignment.end_chunk != -1 or alignment.drop_reasons[-1:] == ["no_teacher_end"]
    for i, (id, reason) in enumerate(zip(student_ids, alignment.drop_reasons, strict=True)):
        without_text = reason == "unknown_id" or (ended and i == len(student_ids) - 1)
        # WordPiece does not say where spaces stand, so their bytes cannot be counted from outside.
        if student != "wordpiece" or without_text:
            assert alignment.student_bytes[i] == (0 if without_text else len(pieces(student, [id])[0]))
