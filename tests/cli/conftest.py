"""The models on disk of the training tests, and a call of the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from datasets import Dataset

from tests.training.conftest import qwen_teacher_path, student_path, teacher_path
from tests.training.tiny_models import PROMPTS
from trl_xtok.cli import main


__all__ = ["qwen_teacher_path", "student_path", "teacher_path"]


class Result(NamedTuple):
    """What a command came to."""

    status: int
    out: str
    err: str


@pytest.fixture
def trl_xtok(capsys) -> Callable[..., Result]:
    """Run a command in this process."""

    def run(*argv: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(arg) for arg in argv])
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 0
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture
def prompts_path(tmp_path) -> Path:
    """Prompts as JSON lines."""
    path = tmp_path / "prompts.jsonl"
    Dataset.from_dict({"prompt": PROMPTS}).to_json(path)
    return path


@pytest.fixture
def two_teachers(tmp_path, teacher_path, qwen_teacher_path) -> list[str]:
    """Flags for two of them, and rows for both."""
    rows = [{"prompt": prompt, "teacher": name} for prompt, name in zip(PROMPTS, ["math", "code"] * 4, strict=True)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    teachers = json.dumps({"math": teacher_path, "code": qwen_teacher_path})
    return ["--dataset_name", str(tmp_path / "rows.jsonl"), "--teacher_model_name_or_path", teachers]


@pytest.fixture
def base(tmp_path, student_path, teacher_path, prompts_path) -> list[str]:
    """A short run; later flags win."""
    settings = {
        "model_name_or_path": student_path,
        "teacher_model_name_or_path": teacher_path,
        "dataset_name": prompts_path,
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_new_tokens": 6,
        "max_length": 128,
        "min_coverage": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "gradient_checkpointing": False,
    }
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
