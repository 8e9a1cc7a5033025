"""From the signal of a chunk to the advantage of each of its student tokens.

For a chunk of `m` student tokens with log-probs `p_i`: `L_S` is their sum, `L_T` the teacher's log-prob of the same
text, and the gap `L_T - L_S` is what the tokens share. Advantages carry no gradient, and a token in no chunk gets 0.
Log-probs are in nats and not above 0, but for round-off.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ConfigError
from .chunk_ops import chunk_sizes, spread_over_tokens, sum_by_chunk


Credit = Literal["proportional", "additive", "uniform", "chunk"]

# Where the student is this sure of a chunk, its log-probs are round-off and say nothing about shares.
SURE_LOGP = -1e-8


def chunk_advantages(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
    credit: Credit,
) -> Float[Tensor, " tokens"]:
    """Advantages by the rule that `credit` names, before text correction, clipping and charge.

    Args:
        student_logps: Log-prob of each student token.
        teacher_chunk_logps: `L_T` of each chunk, finite (see `finite_chunks`).
        chunk_ids: The chunk that each student token belongs to, or -1 for none.
        credit: The rule.

    Raises:
        ConfigError: If there is no such rule.

    Example:
        >>> logps, teacher, ids = torch.tensor([-1.0, -3.0, -9.0]), torch.tensor([-2.0]), torch.tensor([0, 0, -1])
        >>> chunk_advantages(logps, teacher, ids, "proportional")
        tensor([0.5000, 1.5000, 0.0000])
    """
    return _rule(credit).advantages(student_logps, teacher_chunk_logps, chunk_ids)


def proportional(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """`A_i = (L_T / L_S - 1) p_i`: a token shares in the gap as it shares in `L_S` (arXiv 2606.09456).

    Sums to the gap, and no token gets more than the gap. Falls back to `additive` where `L_S > -1e-8`.
    """
    gaps = _gaps(student_logps, teacher_chunk_logps, chunk_ids)
    return spread_over_tokens(gaps, chunk_ids) * _proportional_shares(student_logps, chunk_ids, len(gaps))


def additive(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """`A_i = (L_T - L_S) / m`: the exact minimiser of the least-squares problem of arXiv 2606.09456.

    Sums to the gap.
    """
    gaps = _gaps(student_logps, teacher_chunk_logps, chunk_ids)
    return spread_over_tokens(gaps, chunk_ids) * _even_shares(student_logps, chunk_ids, len(gaps))


def uniform(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """`A_i = L_T / m - p_i`: the teacher's log-prob is spread evenly, each token answers for its own.

    Sums to the gap.
    """
    logps, targets = student_logps.detach(), spread_over_tokens(teacher_chunk_logps.detach(), chunk_ids)
    shares = _even_shares(logps, chunk_ids, len(teacher_chunk_logps))
    return (targets * shares - logps).masked_fill(chunk_ids < 0, 0)


def chunk(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
) -> Float[Tensor, " tokens"]:
    """`A_i = L_T - L_S` for every token: the score-function form of the chunk's reverse KL.

    Unbiased for the chunk-local reverse KL with the cuts held fixed. Sums to `m` times the gap.
    """
    return spread_over_tokens(_gaps(student_logps, teacher_chunk_logps, chunk_ids), chunk_ids)


def text_correction(
    student_logps: Float[Tensor, " tokens"],
    canonical_unit_logps: Float[Tensor, " units"],
    unit_ids: Int[Tensor, " tokens"],
    paths_differ: Bool[Tensor, " units"],
    credit: Credit,
) -> Float[Tensor, " tokens"]:
    """What to subtract from the advantages so that they reward the text and not its segmentation.

    A unit is a stretch of text that sampled and canonical tokens both delimit and that splits no chunk. Where the two
    paths through it differ, `d = logaddexp(L_S(sampled), L_S(canonical)) - L_S(sampled)` is how much more likely the
    student finds the text than the sampled path, by two of its paths. The unit's tokens share it as they share a gap:
    `d p_i / L_S` (proportional), `d / m` (additive, uniform) or `d` (chunk), with `m` and `L_S` over the unit. So the
    first three sum to `L_T - L_S - d` over the unit once it is subtracted, which is to be done before clipping.

    Args:
        student_logps: Log-prob of each sampled token.
        canonical_unit_logps: Log-prob that the student gives to the unit's canonical tokens; not read where the paths
            agree, so it may be NaN there.
        unit_ids: The unit that each sampled token belongs to, or -1 for no correction.
        paths_differ: Whether the sampled and the canonical tokens of the unit are not the same.
        credit: The rule that the advantages follow.

    Returns:
        Corrections of at least 0 (but for round-off), without gradient; 0 where the paths agree.

    Example:
        >>> logps, units = torch.tensor([-1.0, -1.0, -4.0]), torch.tensor([0, 0, 1])
        >>> text_correction(logps, torch.tensor([-2.0, -4.0]), units, torch.tensor([True, False]), "additive")
        tensor([0.3466, 0.3466, 0.0000])
    """
    sampled = sum_by_chunk(student_logps.detach(), unit_ids, len(paths_differ))
    gain = torch.logaddexp(sampled, canonical_unit_logps.detach()) - sampled
    shares = _rule(credit).shares(student_logps, unit_ids, len(paths_differ))
    return spread_over_tokens(gain.where(paths_differ, 0.0), unit_ids) * shares


def clip_advantages(
    advantages: Float[Tensor, " tokens"], clip: float | None
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Advantages within `[-clip, clip]`, and which of them were outside; `None` clips nothing.

    Raises:
        ConfigError: If `clip` is not positive.

    Example:
        >>> clip_advantages(torch.tensor([-30.0, 2.0]), 10.0)
        (tensor([-10.,   2.]), tensor([ True, False]))
    """
    if clip is None:
        return advantages, torch.zeros_like(advantages, dtype=torch.bool)
    if not clip > 0:
        raise ConfigError(
            f"Advantages were to be clipped to ±{clip}, which leaves nothing to learn from. Pass a positive number, "
            "or None for no clipping."
        )
    return advantages.clamp(-clip, clip), advantages.abs() > clip


def dropped_charge(
    dropped_advantage: float | Literal["mean"],
    advantage_sum: Float[Tensor, ""],
    advantage_count: Int[Tensor, ""] | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Advantage of a token that the student itself made unscorable.

    Without it such tokens earn 0 while the mean advantage is negative, so probability flows to whatever is dropped.

    Args:
        dropped_advantage: The charge, or `"mean"` for `min(0, mean advantage)`.
        advantage_sum: Sum of the clipped advantages of all scored tokens of the optimizer step, over all ranks.
        advantage_count: Their number; with none, `"mean"` charges 0.

    Example:
        >>> dropped_charge("mean", torch.tensor(-6.0), torch.tensor(4))
        tensor(-1.5000)
    """
    if dropped_advantage == "mean":
        return (advantage_sum / advantage_count.clamp(min=1)).clamp(max=0)
    return torch.full_like(advantage_sum, dropped_advantage)


def finite_chunks(teacher_chunk_logps: Float[Tensor, " chunks"]) -> Bool[Tensor, " chunks"]:
    """Which chunks the teacher gave a finite log-prob; the others must be dropped and counted."""
    return teacher_chunk_logps.isfinite()


class _Rule(NamedTuple):
    advantages: Callable[[Tensor, Tensor, Tensor], Tensor]
    shares: Callable[[Tensor, Tensor, int], Tensor]


def _rule(credit: Credit) -> _Rule:
    match credit:
        case "proportional":
            return _Rule(proportional, _proportional_shares)
        case "additive":
            return _Rule(additive, _even_shares)
        case "uniform":
            return _Rule(uniform, _even_shares)
        case "chunk":
            return _Rule(chunk, _whole_shares)
        case _:
            raise ConfigError(
                f"credit={credit!r} is no rule to split a chunk's signal. Use 'proportional', 'additive', 'uniform' "
                "or 'chunk'."
            )


def _gaps(student_logps: Tensor, teacher_chunk_logps: Tensor, chunk_ids: Tensor) -> Tensor:
    student_chunk_logps = sum_by_chunk(student_logps.detach(), chunk_ids, len(teacher_chunk_logps))
    return teacher_chunk_logps.detach() - student_chunk_logps


def _proportional_shares(student_logps: Tensor, ids: Tensor, num: int) -> Tensor:
    # A log-prob that round-off put above 0 would turn shares negative, and then nothing bounds them.
    logps = student_logps.detach().clamp(max=0)
    sums = spread_over_tokens(sum_by_chunk(logps, ids, num), ids, fill=-1.0)
    sure = sums > SURE_LOGP
    return (logps / sums.masked_fill(sure, -1.0)).where(~sure, _even_shares(logps, ids, num)).masked_fill(ids < 0, 0)


def _even_shares(student_logps: Tensor, ids: Tensor, num: int) -> Tensor:
    sizes = chunk_sizes(ids, num).to(student_logps.dtype)
    return spread_over_tokens(sizes.clamp(min=1).reciprocal(), ids)


def _whole_shares(student_logps: Tensor, ids: Tensor, num: int) -> Tensor:
    return (ids >= 0).to(student_logps.dtype)
