"""Input that cannot work, and a trainer to give it to."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from tests import real_tokenizers
from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import tiny_args, tiny_trainer
from trl_xtok import CrossTokenizerGKDTrainer


CONVERSATIONS = [{"prompt": [{"role": "user", "content": "Hi"}]}, {"prompt": [{"role": "user", "content": "Why?"}]}]
OF_THE_TRAINER = {
    *("train_dataset", "eval_dataset", "data_collator", "processing_class", "teacher_processing_class"),
    *("peft_config", "quantization_config", "compute_metrics", "formatting_func", "preprocess_logits_for_metrics"),
}


def builder(folder: Path, student: str, teacher: str) -> Callable[..., CrossTokenizerGKDTrainer]:
    """Builds a trainer for the shared models; what is not an argument of the trainer is one of its `args`."""

    def build(*, model: Any = student, teacher: Any = teacher, args: Any = None, **rest: Any):
        arguments = shared_tokenizers() | {name: rest.pop(name) for name in list(rest) if name in OF_THE_TRAINER}
        return tiny_trainer(model, teacher, args or tiny_args(folder, **rest), **arguments)

    return build


def forbid_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if weights are read: what is refused without them costs the user nothing."""

    def fail(*args, **kwargs):
        raise AssertionError("Weights were loaded before the input was checked.")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(fail))


def gpt2(**config: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32000, n_embd=16, n_layer=1, n_head=2, **config))


def without_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = None
    return clone


def without_special_tokens() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=real_tokenizers.smollm2().backend_tokenizer)


def unreadable() -> PreTrainedTokenizerFast:
    """A fast tokenizer that does not say what its tokens spell."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="b", pad_token="b")
