"""The prompts that ship with the demo."""

import json
from collections import Counter
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import groupby

import pytest

from tests.real_tokenizers import gemma3


CODE = {"python", "javascript", "sql", "c"}


@pytest.fixture(scope="module")
def rows():
    text = files("trl_xtok.cli").joinpath("demo_prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def languages(rows, split):
    return Counter(row["language"] for row in rows if row["split"] == split)


def test_every_row_has_the_same_fields(rows):
    assert all(row.keys() == {"prompt", "language", "split"} for row in rows)


def test_a_sixth_of_every_language_is_held_out(rows):
    train, held_out = languages(rows, "train"), languages(rows, "held_out")
    assert train == {language: 5 * count for language, count in held_out.items()}
    assert (train.total(), held_out.total()) == (205, 41)
    assert train.total() + held_out.total() == len(rows)


def test_there_are_fifteen_languages_and_four_of_programming(rows):
    train = languages(rows, "train")
    assert len(train.keys() - CODE) == 15
    assert train.keys() >= CODE


def test_no_prompt_is_a_variant_of_another(rows):
    by_language = groupby(sorted(rows, key=lambda row: row["language"]), key=lambda row: row["language"])
    for _, group in by_language:
        prompts = [row["prompt"].casefold() for row in group]
        for index, prompt in enumerate(prompts):
            for other in prompts[:index]:
                matcher = SequenceMatcher(None, prompt, other, autojunk=False)
                assert matcher.real_quick_ratio() < 0.7 or matcher.quick_ratio() < 0.7 or matcher.ratio() < 0.7, (
                    f"{prompt!r} resembles {other!r}"
                )


def test_prompts_are_short_beginnings_of_valid_text(rows):
    for row in rows:
        prompt = row["prompt"]
        assert prompt == prompt.strip(), "a model would have to continue after white space"
        assert "\ufffd" not in prompt
        assert 10 <= len(gemma3().encode(prompt, add_special_tokens=False)) <= 60, prompt


def test_prompts_that_come_first_are_mixed(rows):
    assert len({row["language"] for row in rows[:32]}) >= 8
