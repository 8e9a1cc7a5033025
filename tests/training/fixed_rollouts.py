"""Completions that a ByteLevel student (SmolLM2) can sample, one of each troublesome kind, and a trainer for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from tests import real_tokenizers
from tests.conversion import printable_bytes
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok import CrossTokenizerGKDTrainer
from trl_xtok.training.data import unpad
from trl_xtok.training.rollouts import OnWritten
from trl_xtok.training.window import MicroBatch


# Rows of the embedding beyond the tokenizer, as many models have them; the student can sample these ids too.
PADDING_ROWS = 64


def lora() -> LoraConfig:
    """Random adapters: with the usual zeros in one of the two matrices half of the gradients would be zero.

    A new object each time, since PEFT writes into it.
    """
    return LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj", "down_proj"])


def text(content: str) -> list[int]:
    """The student's own tokens for a text."""
    return real_tokenizers.smollm2().encode(content, add_special_tokens=False)


def raw(content: bytes) -> list[int]:
    """One token per byte; not every byte has one."""
    return [_tokens_of_bytes()[byte] for byte in content]


@cache
def _tokens_of_bytes() -> dict[int, int]:
    vocabulary = real_tokenizers.smollm2().get_vocab()
    return {byte: vocabulary[shown] for byte, shown in printable_bytes().items() if shown in vocabulary}


def stop() -> list[int]:
    """The token that ends a turn."""
    return [real_tokenizers.smollm2().eos_token_id]


def rollouts() -> dict[str, list[int]]:
    """A completion for each of `PROMPTS`."""
    unknown = [len(real_tokenizers.smollm2()) + 5]
    completions = [
        text(" 1, 2, 3 and 12345. \u4f60\u597d\u4e16\u754c!") + stop(),
        raw(b" Hello") + text(" there") + raw(b"!!") + stop(),
        text(" Unfinished, and never to be finish"),
        text(" a") + raw(b"\xc3") + text(" b, then") + raw(b"\xf0\x9f") + text(" four words more here") + stop(),
        text(" Paris") + unknown + text(" is it, 2024.") + stop(),
        [],
        stop(),
        text(" 4, that") + raw(b" is 4") + text(" in every book") + raw(b"\xe4\xbd"),
    ]
    return dict(zip(PROMPTS, completions, strict=True))


class FixedTrainer(CrossTokenizerGKDTrainer):
    """Takes each prompt's completion from `rollouts` instead of sampling it, unless there are none.

    Attributes:
        rollouts: The completion of each plain-text prompt, or `None` to sample.
        sampled: The completions of the last window that was on-policy.
    """

    rollouts: dict[str, list[int]] | None = None
    sampled: Sequence[list[int]] = ()

    def _roll_out(self, prompts: Sequence[dict[str, Tensor]], on_written: OnWritten) -> list[list[int]]:
        if self.rollouts is None:
            self.sampled = super()._roll_out(prompts, on_written)
        else:
            by_prompt = {tuple(self.data_collator.tokenize(p)[0]): ids for p, ids in self.rollouts.items()}
            rows = (row for batch in prompts for row in unpad(batch["prompts"], batch["prompt_attention_mask"]))
            self.sampled = [by_prompt[tuple(row)] for row in rows]
        return self.sampled


def whole_step(
    trainer: CrossTokenizerGKDTrainer, prompts: Iterable[str | Mapping[str, Any]], batch_size: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """The micro-batches of one optimizer step over `prompts`, as the trainer prepares them, and their normalizer.

    Prompts may be whole rows of a dataset.
    """
    rows = [{"prompt": prompt} if isinstance(prompt, str) else prompt for prompt in prompts]
    batches = [trainer.data_collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)


def scored_step(
    trainer: CrossTokenizerGKDTrainer, prompts: Iterable[str | Mapping[str, Any]], batch_size: int
) -> list[MicroBatch]:
    """The micro-batches of `whole_step`, with the teacher's scores."""
    batches = [inputs["micro_batch"] for inputs in whole_step(trainer, prompts, batch_size)[0]]
    trainer._take_scores(batches)
    return batches


def loss_and_gradients(
    trainer: CrossTokenizerGKDTrainer, prompts: Iterable[str | Mapping[str, Any]], batch_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one optimizer step over `prompts`, and the gradient of each parameter."""
    trainer.model.zero_grad()
    micro_batches, count = whole_step(trainer, prompts, batch_size)
    total = torch.zeros(())
    for inputs in micro_batches:
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count)
        loss.backward()
        total += loss.detach()
    return total, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of the last optimizer step, as the optimizer gets them."""

    def __init__(self):
        self.gradients: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        self.gradients = {name: whole(gradient).clone() for name, gradient in gradients.items()}


@dataclass
class Step:
    """What one optimizer step came to: gradients by parameter, and what was logged."""

    gradients: dict[str, Tensor]
    logged: dict[str, float]
    evaluated: dict[str, float]
    sampled: list[list[int]]


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that do not depend on how fast the machine is."""
    return {name: value for name, value in metrics.items() if "time" not in name and "per_second" not in name}


def train_one_step(
    student: str,
    teacher: str,
    folder: str,
    completions: dict[str, list[int]] | None,
    *,
    evaluate: bool = False,
    prompts: list[str] | None = None,
    written: list[str] | None = None,
    streamed: bool = False,
    streamed_evaluation: bool = False,
    peft_config: LoraConfig | None = None,
    **changes: Any,
) -> Step:
    """Train for one step, in the order of the prompts, without gradient clipping.

    Args:
        student: Its path.
        teacher: Its path.
        folder: For what the trainer writes.
        completions: The rollout of each prompt; `None` samples them for `prompts`.
        evaluate: Whether to evaluate on the same prompts before the step.
        prompts: Prompts to sample for.
        written: The dataset's completion of each prompt.
        streamed: Whether the dataset is an iterable one.
        streamed_evaluation: Whether that to evaluate on is.
        peft_config: Adapter to train.
        **changes: Changed training arguments.
    """
    recorder = GradientRecorder()
    dataset = prompt_dataset(prompts if completions is None else list(completions))
    if written is not None:
        dataset = dataset.add_column("completion", written)
    if streamed:
        dataset = dataset.to_iterable_dataset()
    torch.manual_seed(0)
    trainer = tiny_trainer(
        student,
        teacher,
        tiny_args(folder, train_sampling_strategy="sequential", max_grad_norm=0, **changes),
        trainer_class=FixedTrainer,
        train_dataset=dataset,
        eval_dataset=dataset.to_iterable_dataset() if streamed_evaluation else dataset,
        compute_metrics=lambda prediction: {"num_completions": len(prediction.predictions)},
        callbacks=[recorder],
        peft_config=peft_config,
    )
    trainer.rollouts = completions
    evaluated = trainer.evaluate() if evaluate else {}
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    return Step(recorder.gradients, logged, evaluated, trainer.sampled)
