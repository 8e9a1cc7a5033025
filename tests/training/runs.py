"""Short runs: what they are given, and what to look at afterwards."""

from typing import Any

import torch
from peft import LoraConfig

from tests import real_tokenizers
from trl_xtok import CrossTokenizerGKDTrainer


# Sizes that bitsandbytes can pack on a CPU.
PACKABLE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "num_key_value_heads": 2}


def shared_tokenizers() -> dict[str, Any]:
    """The tokenizers of the shared models, read once for all tests that do not ask how a tokenizer is found."""
    return {
        "processing_class": real_tokenizers.smollm2(),
        "teacher_processing_class": real_tokenizers.mistral1(),
    }


def lora(**settings) -> LoraConfig:
    # A new one each time, because PEFT writes the model's name into it.
    return LoraConfig(r=4, **{"target_modules": ["q_proj", "v_proj", "down_proj"]} | settings)


def parameters_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}


def write(trainer: CrossTokenizerGKDTrainer, text: str, *, stop: bool = True) -> None:
    """Let the student answer every prompt with `text`."""
    tokenizer = trainer.processing_class
    ids = [*tokenizer.encode(text, add_special_tokens=False), *[tokenizer.eos_token_id] * stop]

    def roll_out(prompts, on_written):
        return [list(ids) for batch in prompts for _ in batch["prompts"]]

    trainer._roll_out = roll_out


def logged(trainer: CrossTokenizerGKDTrainer) -> list[dict[str, float]]:
    """The logs of the training steps."""
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def keep_best(metric: str, steps: int) -> dict[str, Any]:
    """Settings of a run that evaluates and saves after every step, and ends with the checkpoint of the best one."""
    return {
        "max_steps": steps,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": True,
    }
