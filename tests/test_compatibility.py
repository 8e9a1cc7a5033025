"""`docs/compatibility.md` names every argument once, says the truth about what is refused, and its tests exist."""

import ast
import dataclasses
import inspect
import re
import warnings
from functools import cache
from pathlib import Path

import pytest
from trl import DistillationConfig, SFTConfig
from trl.import_utils import TRLExperimentalWarning
from trl.trainer.base_config import _BaseConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.training.config_checks import ONLY_VALUE


with warnings.catch_warnings():
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.gold import GOLDConfig

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "compatibility.md").read_text()
STATES = ("honoured", "refused", "changed", "script")
# Refused where the trainer is built, since a launcher may set them, or by what they imply.
REFUSED_ELSEWHERE = {"parallelism_config", "torch_compile_backend", "torch_compile_mode"}
# One value is refused, and the row says so.
PARTLY = {"average_tokens_across_devices"}


def section(title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = len(title.split(" ")[0])
    _, found, rest = PAGE.partition(f"\n{title}\n")
    assert found, title
    return re.split(rf"^#{{2,{level}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> list[list[str]]:
    """The rows of the tables of a section, without their heads."""
    table = [line.strip("|").split(" | ") for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in table if row[0].strip() not in ("field", "argument", "feature")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def listed(title: str) -> list[str]:
    return [name for row in rows(title) for name in names(row[0])]


def own(config: type, base: type) -> set[str]:
    inherited = {field.name for field in dataclasses.fields(base)}
    return {field.name for field in dataclasses.fields(config) if field.name not in inherited}


CONFIG = "## Fields of `CrossTokenizerGKDConfig`"
TRAINER = "## Arguments of `CrossTokenizerGKDTrainer`"


def test_every_field_has_one_row():
    fields = listed(CONFIG)
    assert sorted(fields) == sorted({field.name for field in dataclasses.fields(CrossTokenizerGKDConfig)})


def test_every_argument_of_the_trainer_has_one_row():
    arguments = inspect.signature(CrossTokenizerGKDTrainer.__init__).parameters.keys() - {"self"}
    assert sorted(listed(TRAINER)) == sorted(arguments)


@pytest.mark.parametrize(
    ("title", "config", "base"),
    [("### `GOLDConfig`", GOLDConfig, SFTConfig), ("### `DistillationConfig`", DistillationConfig, _BaseConfig)],
    ids=["GOLD", "distillation"],
)
def test_every_name_of_the_other_trainers_has_one_row(title, config, base):
    assert sorted(listed(title)) == sorted(own(config, base))


@pytest.mark.parametrize("title", ["### `GOLDConfig`", "### `DistillationConfig`"])
def test_a_name_that_is_said_to_be_the_same_is_a_field(title):
    fields = {field.name for field in dataclasses.fields(CrossTokenizerGKDConfig)}
    for cell, here in rows(title):
        assert all((name in fields) == here.startswith(("the same name", "refused")) for name in names(cell)), cell


@pytest.mark.parametrize("title", [CONFIG, TRAINER, "## Features"])
def test_every_row_says_what_becomes_of_it(title):
    for name, state, _ in rows(title):
        assert state.startswith(STATES), (name, state)


def test_what_is_refused_is_what_the_page_says():
    refused = {name for cell, state, _ in rows(CONFIG) if state.startswith("refused") for name in names(cell)}
    assert refused == ONLY_VALUE.keys() - PARTLY | REFUSED_ELSEWHERE
    for cell, state, _ in rows(CONFIG):
        if PARTLY & set(names(cell)):
            assert "is refused" in state


@cache
def names_of_tests(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
    return {name for name in found if "test_" in name}


@pytest.mark.parametrize("node", sorted(set(re.findall(r"`([a-z_/]+\.py::[^`]+)`", PAGE))))
def test_a_named_test_exists(node):
    file, _, name = node.partition("::")
    assert name in names_of_tests(TESTS / file)


@pytest.mark.parametrize("title", [CONFIG, TRAINER, "## Features"])
def test_a_row_without_a_test_is_what_another_package_or_a_script_does(title):
    for name, state, test in rows(title):
        assert "::" in test or (test == "\u2014" and state.startswith(("honoured by", "script"))), name
