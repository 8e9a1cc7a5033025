"""Sizes of one measurement, and random tensors of these sizes."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one measurement.

    Attributes:
        tokens: Positions that are trained on, the same number on both sides.
        hidden: Width of both models' hidden states.
        student_vocab: Rows of the student's head.
        teacher_vocab: Rows of the teacher's head.
        sequences: Completions that the tokens belong to; only GOLD's cost depends on it.
        beta: Of all Jensen-Shannon divergences.
        device: Where it all is.
    """

    tokens: int
    hidden: int
    student_vocab: int
    teacher_vocab: int
    sequences: int = 8
    beta: float = 0.5
    device: str = "cpu"


class Inputs(NamedTuple):
    """Final hidden states and heads of both models, float32."""

    student: Float[Tensor, "tokens hidden"]
    student_head: Float[Tensor, "student_vocab hidden"]
    teacher: Float[Tensor, "tokens hidden"]
    teacher_head: Float[Tensor, "teacher_vocab hidden"]


class SkippedCase(Exception):
    """The case cannot be measured at these sizes; says why."""


def make_inputs(sizes: Sizes) -> Inputs:
    """Random inputs, the same for every case; the logits come out with a variance of 1."""
    generator = torch.Generator(sizes.device).manual_seed(0)

    def random(rows: int, scale: float) -> Tensor:
        # In place, so that no second copy adds to the memory that is compared with.
        return torch.empty(rows, sizes.hidden, device=sizes.device).normal_(std=scale, generator=generator)

    head_scale = sizes.hidden**-0.5
    return Inputs(
        student=random(sizes.tokens, 1.0),
        student_head=random(sizes.student_vocab, head_scale),
        teacher=random(sizes.tokens, 1.0),
        teacher_head=random(sizes.teacher_vocab, head_scale),
    )


def random_ids(sizes: Sizes, vocab_size: int) -> Int[Tensor, " tokens"]:
    """An id for every position."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (sizes.tokens,), generator=generator).to(sizes.device)
