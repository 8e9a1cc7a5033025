"""The prompts that ship with the demo."""

import json
from collections import Counter
from difflib import SequenceMatcher
from importlib.resources import files
from itertools import groupby

import pytest

from tests.real_tokenizers import gemma3, smollm2


CODE = {"python", "javascript", "sql", "c", "json"}


@pytest.fixture(scope="module")
def rows():
    text = files("trl_xtok.cli").joinpath("demo_prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def languages(rows, split):
    return Counter(row["language"] for row in rows if row["split"] == split)


def test_every_row_has_the_same_fields(rows):
    assert all(row.keys() == {"prompt", "language", "split"} for row in rows)


def test_about_a_sixth_of_every_language_is_held_out(rows):
    train, held_out = languages(rows, "train"), languages(rows, "held_out")
    assert train.keys() == held_out.keys()
    assert all(4 <= train[language] / held_out[language] <= 6 for language in train)
    assert (train.total(), held_out.total()) == (181, 36)
    assert train.total() + held_out.total() == len(rows)


def test_there_are_nine_languages_and_five_of_programming(rows):
    train = languages(rows, "train")
    assert len(train.keys() - CODE) == 9
    assert train.keys() >= CODE


def test_prompts_are_short_for_the_student(rows):
    """The time of a step grows with the longest prompt of its batch."""
    assert max(len(smollm2().encode(row["prompt"])) for row in rows) <= 31


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
