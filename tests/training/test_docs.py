"""The examples of the page on data formats run, each for a step."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

import trl_xtok
from tests import real_tokenizers
from tests.chat_templates import vendors
from tests.training.runs import logged
from tests.training.tiny_models import tiny_args, tiny_model, tiny_trainer


PAGE = (Path(__file__).parents[2] / "docs/data_formats.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Models with room for long prompts, and templates that know tools."""
    tokenizers = copy.deepcopy((real_tokenizers.smollm2(), real_tokenizers.mistral1()))
    for tokenizer, template in zip(tokenizers, ("qwen3", "llama3_1"), strict=True):
        tokenizer.chat_template = vendors(template)
    student, teacher = (tiny_model("llama", len(tokenizer), max_position_embeddings=4096) for tokenizer in tokenizers)
    return {
        "student": student,
        "teacher": teacher,
        "processing_class": tokenizers[0],
        "teacher_processing_class": tokenizers[1],
    }


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_an_example_runs(block, models, tmp_path, monkeypatch):
    def short(output_dir, **changes):
        return tiny_args(tmp_path / output_dir, max_length=2048, per_device_train_batch_size=1, **changes)

    monkeypatch.setattr(trl_xtok, "CrossTokenizerGKDConfig", short)
    names: dict[str, Any] = {}
    exec(block, names)
    trainer = tiny_trainer(args=names["args"], train_dataset=names["dataset"], **models)
    trainer.train()
    assert logged(trainer)


def test_every_example_is_found():
    assert len(BLOCKS) == PAGE.count("```") // 2 == 6


def test_what_the_page_names_exists():
    """Metrics and arguments are spelled as in the code."""
    fields = trl_xtok.CrossTokenizerGKDConfig.__dataclass_fields__
    for name in re.findall(r"`(\w+)=", PAGE):
        assert name in fields or name == "enable_thinking"
