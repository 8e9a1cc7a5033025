"""Log-probs of a micro-batch -> the advantage of each of its tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor

from ..objectives import (
    chunk_advantages,
    clip_advantages,
    dropped_charge,
    text_correction,
)
from .config import CrossTokenizerGKDConfig
from .window import Means, MicroBatch


@dataclass(frozen=True, slots=True)
class Credited:
    """The advantages of a micro-batch.

    Attributes:
        advantages: One per completion token; 0 for tokens that are not trained on.
        scored: Tokens whose advantage comes from a teacher score.
        clipped: Tokens whose advantage was clipped.
    """

    advantages: Float[Tensor, " tokens"]
    scored: Bool[Tensor, " tokens"]
    clipped: Bool[Tensor, " tokens"]

    def sum_and_count(self) -> Float[Tensor, "2"]:
        """Sum of the advantages that come from scores, and their number."""
        return torch.stack([self.advantages[self.scored].sum(), self.scored.sum().to(self.advantages.dtype)])


def credit_tokens(
    student_logps: Float[Tensor, " tokens"], batch: MicroBatch, args: CrossTokenizerGKDConfig
) -> Credited:
    """Advantages by the rule of `args.credit`, corrected, clipped, charged and centred; none carries a gradient."""
    credited = _credit_scored(student_logps.detach(), batch, args)
    means = batch.means or _step_means(credited.sum_and_count(), args)
    advantages = torch.where(batch.charged, means.charge, credited.advantages)
    advantages = torch.where(credited.scored | batch.charged, advantages - means.baseline, advantages)
    return replace(credited, advantages=advantages)


def _credit_scored(
    student_logps: Float[Tensor, " tokens"], batch: MicroBatch, args: CrossTokenizerGKDConfig
) -> Credited:
    """What needs no other token of the optimizer step; 0 for tokens without a score."""
    scored = batch.chunks >= 0
    advantages = chunk_advantages(student_logps, batch.teacher_logps, batch.chunks, args.credit)
    if (paths := batch.canonical) is not None:
        advantages -= text_correction(student_logps, paths.logps, paths.units, paths.differ, args.credit)
    advantages, clipped = clip_advantages(advantages, args.advantage_clip)
    return Credited(advantages, scored, clipped & scored)


@torch.no_grad()
def fix_means(
    batches: Sequence[MicroBatch],
    score: Callable[[dict[str, Tensor]], Float[Tensor, " tokens"]],
    args: CrossTokenizerGKDConfig,
    accelerator: Accelerator,
) -> None:
    """Set the means of all micro-batches of an optimizer step, the same on every rank.

    A mean over the step needs the advantages before the first backward, hence a pass of the student without gradient.
    A micro-batch that is a whole step needs none: it finds its own means. To be called on all ranks or on none.

    Args:
        batches: The micro-batches of the step.
        score: The student's log-probs of packed completions.
        args: The training arguments.
        accelerator: Sums over ranks.
    """
    sums = torch.zeros(2, device=accelerator.device)
    sums += sum(_credit_scored(score(batch.packed), batch, args).sum_and_count() for batch in batches)
    means = _step_means(accelerator.reduce(sums, "sum"), args)
    for batch in batches:
        batch.means = means


def _step_means(sum_and_count: Float[Tensor, "2"], args: CrossTokenizerGKDConfig) -> Means:
    total, count = sum_and_count
    return Means(
        charge=dropped_charge(args.dropped_advantage, total, count),
        baseline=total / count.clamp(min=1) if args.advantage_baseline == "mean" else torch.zeros_like(total),
    )
