"""Time grows with the length of the completion, not with its square."""

import random
import time

import pytest
from transformers import PreTrainedTokenizerFast

from tests.alignment import texts
from tests.alignment.pairs import aligner, sampled, tokenizer
from trl_xtok import TokenizerAligner


def best_seconds(student: str, teacher: str, student_ids: list[int]) -> float:
    """Processor time of the fastest of several runs, which other processes disturb least."""
    runs = []
    for _ in range(3):
        start = time.process_time()
        aligner(student, teacher).align(student_ids)
        runs.append(time.process_time() - start)
    return min(runs)


def completion(student: str, kind: str, length: int) -> list[int]:
    if kind == "random ids":
        generator = random.Random(0)
        return [generator.randrange(len(tokenizer(student))) for _ in range(length)]
    if kind == "spaces one by one":
        return sampled(student, " ")[-1:] * length
    text = {
        "one phrase again": "the cat sat on the mat, ",
        "one long word": "ab",
        "one letter": "a",
        "rare characters": texts.CLEAN["rare cjk"],
        "mixed": " ".join(texts.CLEAN.values()),
    }[kind]
    ids = sampled(student, text * (length // len(text) + 2000))
    while len(ids) < length:
        ids = ids + ids
    return ids[:length]


KINDS = [
    "one phrase again",
    "random ids",
    "one long word",
    "one letter",
    "spaces one by one",
    "rare characters",
    "mixed",
]


@pytest.mark.parametrize(
    "pair", [("llama3", "qwen3"), ("gemma3", "qwen3"), ("qwen3", "gemma3"), ("smollm2", "mistral1")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_32_000_tokens_take_under_half_a_second(pair, kind):
    short, long = (completion(pair[0], kind, length) for length in (8_000, 32_000))
    aligner(*pair).align(short)
    seconds = best_seconds(*pair, long)
    assert seconds < 0.5
    assert seconds < 5 * best_seconds(*pair, short)


def test_reading_the_largest_vocabulary_takes_under_three_seconds():
    """Gemma 3: 262,144 entries, 33 MB of JSON. The copy makes sure that nothing was read before."""
    copy = PreTrainedTokenizerFast(tokenizer_object=tokenizer("gemma3").backend_tokenizer, eos_token="<eos>")
    start = time.process_time()
    TokenizerAligner(copy, tokenizer("qwen3"))
    assert time.process_time() - start < 3
