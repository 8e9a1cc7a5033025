"""Log-probs of a micro-batch -> the advantage of each of its tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..objectives import (
    chunk_advantages,
    clip_advantages,
    dropped_charge,
    text_correction,
)
from .config import CrossTokenizerGKDConfig
from .lookahead import join_chunks
from .window import Means, MicroBatch, StudentScores


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


def credit_tokens(scores: StudentScores, batch: MicroBatch, args: CrossTokenizerGKDConfig) -> Credited:
    """Advantages by the rule of `args.credit`, corrected, clipped, charged, centred and guarded.

    None carries a gradient.
    """
    credited = _credit_scored(scores, batch, args)
    means = batch.means or _step_means(credited.sum_and_count(), args)
    advantages = torch.where(batch.charged, means.charge, credited.advantages)
    advantages = torch.where(credited.scored | batch.charged, advantages - means.baseline, advantages)
    if args.canonical_guard is not None:
        # Also where distributions are compared, which say nothing of how the text is cut.
        guarded = ((batch.chunks >= 0) | batch.charged) & batch.leaving
        advantages = advantages.masked_fill(guarded, -args.canonical_guard)
    return replace(credited, advantages=advantages)


def _credit_scored(scores: StudentScores, batch: MicroBatch, args: CrossTokenizerGKDConfig) -> Credited:
    """What needs no other token of the optimizer step; 0 for tokens without a score."""
    batch = join_chunks(batch, scores.joins)
    student_logps = scores.logps.detach()
    chunks, teacher_logps = _left_to_credit(scores, batch)
    scored = chunks >= 0
    advantages = chunk_advantages(student_logps, teacher_logps, chunks, args.credit)
    if (paths := batch.canonical) is not None:
        advantages -= text_correction(student_logps, paths.logps, paths.units, paths.differ, args.credit)
    if scores.baselines is not None:
        advantages = torch.where(scored, advantages - scores.baselines, advantages)
    advantages, clipped = clip_advantages(advantages, args.advantage_clip)
    return Credited(advantages, scored, clipped & scored)


def _left_to_credit(
    scores: StudentScores, batch: MicroBatch
) -> tuple[Int[Tensor, " tokens"], Float[Tensor, " chunks"]]:
    """The chunk of each token that is credited, else -1, and `L_T` of each chunk.

    Where distributions are compared over an event that both sides begin a chunk with, they say all about a chunk of
    one token on either side. Of a longer one they say how likely it begins so, and `L_T - L_S` loses the log-ratio of
    that event.
    """
    if (starts := batch.starts) is None or scores.compared is None:
        return batch.chunks, batch.teacher_logps
    known = starts.events >= 0
    # The last entry is that of chunk -1.
    finished = torch.zeros(batch.num_chunks + 1, dtype=torch.bool, device=batch.chunks.device)
    finished[starts.chunks] = known & starts.one_to_one
    log_ratios = cast(Tensor, scores.compared.log_ratios).where(known, 0).to(batch.teacher_logps.dtype)
    teacher_logps = batch.teacher_logps.index_add(0, starts.chunks, -log_ratios)
    return batch.chunks.masked_fill(finished[batch.chunks], -1), teacher_logps


@torch.no_grad()
def fix_means(
    batches: Sequence[MicroBatch],
    score: Callable[[MicroBatch], StudentScores],
    args: CrossTokenizerGKDConfig,
    accelerator: Accelerator,
) -> None:
    """Set the means of all micro-batches of an optimizer step, the same on every rank.

    A mean over the step needs the advantages before the first backward, hence a pass of the student without gradient.
    A micro-batch that is a whole step needs none: it finds its own means. To be called on all ranks or on none.

    Args:
        batches: The micro-batches of the step.
        score: What the student says of a micro-batch.
        args: The training arguments.
        accelerator: Sums over ranks.
    """
    sums = torch.zeros(2, device=accelerator.device)
    sums += sum(_credit_scored(score(batch), batch, args).sum_and_count() for batch in batches)
    means = _step_means(accelerator.reduce(sums, "sum"), args)
    for batch in batches:
        batch.means = means


def _step_means(sum_and_count: Float[Tensor, "2"], args: CrossTokenizerGKDConfig) -> Means:
    total, count = sum_and_count
    return Means(
        charge=dropped_charge(args.dropped_advantage, total, count),
        baseline=total / count.clamp(min=1) if args.advantage_baseline == "mean" else torch.zeros_like(total),
    )
