"""Tiny random models with real tokenizers, and a trainer for them; nothing is fetched from the network.

The models are random but not flat: their weights are drawn ten times wider than usual, so that a token's log-prob
depends on its prefix by whole nats and a mistake cannot hide in rounding.
"""

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


Trainer = TypeVar("Trainer", bound=CrossTokenizerGKDTrainer)

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "cohere": (CohereConfig, CohereForCausalLM),
    "granite": (GraniteConfig, GraniteForCausalLM),
    "phi": (PhiConfig, PhiForCausalLM),
}

# Folders that `save` wrote.
_saved: set[str] = set()

# Of unequal length in both models' tokens.
PROMPTS = [
    "Count from 1 to 12345:",
    "Hi",
    "Was hei\u00dft \u201eApfelb\u00e4umchen\u201c auf Englisch?",
    "def add(a, b):\n    return",
    "The capital of France is",
    "\u4f60\u597d\uff0c",
    "Name three colours, please, and say which of them you like best.",
    "2 + 2 =",
]


def tiny_model(family: str, vocab_size: int, *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A random two-layer model of a family."""
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    model = model_class(config_class(**settings | config))
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Save both into a folder, which then serves as a model's name."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _saved.add(str(folder))
    return str(folder)


@cache
def _tokenizer_of(folder: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def prompt_dataset(prompts: list[str] = PROMPTS) -> Dataset:
    """Plain-text prompts."""
    return Dataset.from_dict({"prompt": prompts})


def tiny_args(output_dir: Path | str, **changes: Any) -> CrossTokenizerGKDConfig:
    """Arguments of a short, quiet run on the CPU; random models dip below any sensible `min_coverage`."""
    settings = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "max_new_tokens": 6,
        "max_length": 128,
        "min_coverage": 0.0,
        "activation_checkpointing": False,
    }
    return CrossTokenizerGKDConfig(str(output_dir), **settings | changes)


def tiny_trainer(
    student: PreTrainedModel | str,
    teacher: PreTrainedModel | str,
    args: CrossTokenizerGKDConfig,
    *,
    trainer_class: type[Trainer] = CrossTokenizerGKDTrainer,
    **arguments: Any,
) -> Trainer:
    """A trainer over `PROMPTS`; further arguments are the trainer's.

    Tokenizers that it would find by name are read once for all trainers, so a test must not change them. One that is
    given as `None` is read anew.
    """
    arguments.setdefault("train_dataset", prompt_dataset())
    for name, model in {"processing_class": student, "teacher_processing_class": teacher}.items():
        if isinstance(model, str) and model in _saved:
            arguments.setdefault(name, _tokenizer_of(model))
    return trainer_class(student, teacher, args, **arguments)
