"""Files, metrics and arguments that the documentation names exist."""

import dataclasses
import re
from pathlib import Path

import pytest

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.training.metrics import DROP_REASONS


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FIELDS = {field.name for field in dataclasses.fields(CrossTokenizerGKDConfig)}
# Arguments of others: chat templates, PEFT, TRL's trainers, bitsandbytes.
OTHERS = {
    *("enable_thinking", "target_modules", "modules_to_save", "ensure_weight_tying", "quantization_config"),
    *("model", "teacher_model", "peft_config", "use_dora", "use_rslora", "use_extended_uld", "llm_int8_threshold"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_exist(page):
    named = re.findall(r"`((?:examples|tests|trl_xtok|docs)/[\w./]+)", page.read_text())
    assert not [name for name in named if not (ROOT / name.rstrip(".")).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_metrics_are_spelled_as_they_are_logged(page):
    source = (ROOT / "trl_xtok/training/metrics.py").read_text()
    logged = {*re.findall(r'"(?:xtok|completions|time)/(\w+)"', source), *(f"dropped_{name}" for name in DROP_REASONS)}
    # A reason stands for all of them, and files of completions are in a folder.
    logged |= {"dropped_", "rollout", "align", "teacher", "student"}
    named = re.findall(r"`(?:eval_)?(?:xtok|completions|time)/(\w+)", page.read_text())
    assert {*named} <= logged


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_arguments_are_spelled_as_in_the_config(page):
    assert {*re.findall(r"`(\w+)=", page.read_text())} <= FIELDS | OTHERS
