"""The example scripts run, each for two steps, with tiny models of the same tokenizers and templates."""

import functools
import runpy
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from datasets import Dataset

import trl_xtok
from tests import chat_templates, real_tokenizers
from tests.training.runs import PACKABLE
from tests.training.tiny_models import save, tiny_model
from trl_xtok.cli import demo_models
from trl_xtok.training.script_arguments import GKDParser


EXAMPLES = Path(__file__).parents[2] / "examples"
# Tokenizer and template of each family, by how the names of its models begin.
FAMILIES: dict[str, tuple[Any, Any]] = {
    "meta-llama/Llama-3": (real_tokenizers.llama3, lambda: chat_templates.vendors("llama3_1")),
    "Qwen/Qwen3": (real_tokenizers.qwen3, lambda: chat_templates.vendors("qwen3")),
    "google/gemma-3": (real_tokenizers.gemma3, lambda: chat_templates.GEMMA),
    "deepseek-ai/": (real_tokenizers.deepseek, lambda: chat_templates.DEEPSEEK),
    "smollm2": (real_tokenizers.smollm2, lambda: None),
}
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "generation_batch_size": 2,
    "max_new_tokens": 4,
    "max_length": 2048,
    "min_coverage": 0.0,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "logging_steps": 1,
}
SCRIPTS = ["quickstart", "llama_from_qwen", "gemma_student", "qwen_from_deepseek", "tools", "thinking_teacher"]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """The folder of a tiny model that reads and writes as the one of this name."""

    @functools.cache
    def build(family: str) -> str:
        tokenizer, template = FAMILIES[family]
        tokenizer = tokenizer()
        folder = tmp_path_factory.mktemp("model")
        model = tiny_model("llama", len(tokenizer), max_position_embeddings=4096, **PACKABLE)
        path = save(model, tokenizer, folder)
        if (text := template()) is not None:
            (folder / "chat_template.jinja").write_text(text)
        return path

    return lambda name: build(next(family for family in FAMILIES if name.startswith(family)))


def messages(split: str) -> Dataset:
    assert split == "train"
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in ("Why?", "Count to 3.")])


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name, stand_in, tmp_path, monkeypatch):
    trainers, config, trainer = [], trl_xtok.CrossTokenizerGKDConfig, trl_xtok.CrossTokenizerGKDTrainer

    def small(output_dir, **settings):
        return config(output_dir=str(tmp_path / output_dir), **{**settings, **SMALL})

    def build(model, teacher_model, **arguments):
        trainers.append(trainer(stand_in(model), stand_in(teacher_model), **arguments))
        return trainers[-1]

    monkeypatch.setattr(trl_xtok, "CrossTokenizerGKDConfig", small)
    monkeypatch.setattr(trl_xtok, "CrossTokenizerGKDTrainer", build)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: messages(split))
    monkeypatch.setattr(demo_models, "demo_model_path", lambda name: name.replace("gemma-3", "google/gemma-3"))
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    (built,) = trainers
    assert built.state.global_step == 2
    assert all(log["loss"] == log["loss"] for log in built.state.log_history if "loss" in log)


def test_every_script_is_found():
    assert {path.stem for path in EXAMPLES.glob("*.py") if "CrossTokenizerGKDTrainer(" in path.read_text()} >= {
        *SCRIPTS
    }


@pytest.mark.parametrize("name", ["t4", "l4", "two_gpus"])
def test_a_recipe_is_read(name, monkeypatch):
    path = EXAMPLES / "recipes" / f"{name}.yaml"
    arguments = GKDParser("trl-xtok gkd").read(["--config", str(path)])
    known = {"t4": [], "l4": [], "two_gpus": ["--accelerate_config", "examples/recipes/accelerate_two_gpus.yaml"]}
    assert (arguments.unknown_in_config, arguments.unknown) == (known[name], [])
    assert arguments.training.teacher_chat_template_kwargs == {"enable_thinking": False}
    assert arguments.training.load_teacher_in_4bit
    assert arguments.model.use_peft


@pytest.mark.parametrize(("name", "processes", "machines"), [
    ("two_gpus", 2, 1),
    ("eight_gpus", 8, 1),
    ("fsdp2_eight_gpus", 8, 1),
    ("two_machines", 16, 2),
])  # fmt: skip
def test_the_configuration_of_accelerate_is_known_to_it(name, processes, machines):
    from accelerate.commands.config import load_config_from_file

    path = EXAMPLES / "recipes" / f"accelerate_{name}.yaml"
    config = load_config_from_file(str(path)).to_dict()
    assert config.items() >= yaml.safe_load(path.read_text()).items()
    assert (config["num_processes"], config["num_machines"]) == (processes, machines)
