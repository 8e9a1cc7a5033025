"""Objectives, as pure functions that return unreduced values.

Masking, counting and normalizing happen once, in the trainer.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .chunk_ops import chunk_sizes, spread_over_tokens, sum_by_chunk


# Probability 1 has no log-odds: its gradient would be infinite.
_MOST_CERTAIN = -1e-6


def chunk_rkl(
    student_logps: Float[Tensor, " tokens"], advantages: Float[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Policy-gradient loss of the chunk-level reverse KL: `-A_i log p_S(token i)`, with `A_i` held fixed.

    The objective of arXiv 2606.09456. Its gradient means something only on tokens that the student has just sampled,
    at the temperature at which `student_logps` were taken. The value itself is no divergence and need not fall.

    Args:
        student_logps: Log-prob of each sampled token, with gradient.
        advantages: From `chunk_advantages`, after correction, clipping and charge; 0 trains nothing.
    """
    return -advantages.detach() * student_logps


def reverse_kl_estimate(
    student_chunk_logps: Float[Tensor, " chunks"], teacher_chunk_logps: Float[Tensor, " chunks"]
) -> Float[Tensor, " chunks"]:
    """One-sample estimate of each chunk's reverse KL, in nats: `L_S - L_T`.

    Valid on chunks that the student has just sampled at the scoring temperature; single values can be negative. The
    student's side is the sampled segmentation and the teacher's side the text, so the mean estimates `KL(text) -
    H(segmentation | text)`: it can be negative too, and falls when the student spreads one text over segmentations.
    """
    return student_chunk_logps - teacher_chunk_logps


def generalized_jsd(
    student_logps: Float[Tensor, "*rows events"], teacher_logps: Float[Tensor, "*rows events"], beta: float
) -> Float[Tensor, " *rows"]:
    """Generalised Jensen-Shannon divergence of two distributions over the same events, in nats.

    `beta KL(T || M) + (1 - beta) KL(S || M)` with `M = beta T + (1 - beta) S`, as in GKD (arXiv 2306.13649, eq. 1);
    `beta = 0` is the forward KL `KL(T || S)` and `beta = 1` the reverse KL `KL(S || T)`. Differentiable on both sides.

    Args:
        student_logps: Log-probs of the events, summing to 1 in each row.
        teacher_logps: The same for the teacher.
        beta: In [0, 1].

    Example:
        >>> student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
        >>> generalized_jsd(student, teacher, beta=1.0)  # 0.5 log 2 + 0.5 log(2 / 3)
        tensor(0.1438)
    """
    if beta == 0:
        return _kl(teacher_logps, student_logps)
    if beta == 1:
        return _kl(student_logps, teacher_logps)
    mixture = torch.logaddexp(student_logps + math.log1p(-beta), teacher_logps + math.log(beta))
    return beta * _kl(teacher_logps, mixture) + (1 - beta) * _kl(student_logps, mixture)


def chunk_jsd(
    student_logps: Float[Tensor, " tokens"],
    teacher_chunk_logps: Float[Tensor, " chunks"],
    chunk_ids: Int[Tensor, " tokens"],
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, " tokens"]:
    """Generalised Jensen-Shannon divergence of two coins per chunk: whether the model writes this chunk here or not.

    The coins have the probabilities `e^(L_S / temperature)` and `e^(L_T / temperature)`. Differentiable, so valid on
    any text and not only on rollouts. With `beta = 0` it is approximate likelihood matching (arXiv 2503.20083).

    Args:
        student_logps: Log-prob of each token, with gradient.
        teacher_chunk_logps: `L_T` of each chunk, finite.
        chunk_ids: The chunk that each token belongs to, or -1 for none.
        beta: 0 forward KL, 1 reverse KL.
        temperature: Divides the log-probs of whole chunks; above 1 it softens those of long chunks.

    Returns:
        The divergence of its chunk divided by the number of tokens in it, per token; 0 for tokens in no chunk. The sum
        is that over the chunks.
    """
    num_chunks = len(teacher_chunk_logps)
    student = _coin(sum_by_chunk(student_logps, chunk_ids, num_chunks), temperature)
    divergence = generalized_jsd(student, _coin(teacher_chunk_logps, temperature), beta)
    return spread_over_tokens(divergence / chunk_sizes(chunk_ids, num_chunks).clamp(min=1), chunk_ids)


def _coin(chunk_logps: Float[Tensor, " chunks"], temperature: float) -> Float[Tensor, "chunks 2"]:
    """Log-probs that the chunk is written and that it is not."""
    written = chunk_logps.clamp(max=_MOST_CERTAIN) / temperature
    # Each branch is exact where the other rounds, and is kept away from where its gradient is not finite.
    likely = written > -math.log(2)
    otherwise = torch.where(
        likely, (-torch.expm1(written)).log(), torch.log1p(-written.masked_fill(likely, -1.0).exp())
    )
    return torch.stack([written, otherwise], dim=-1)


def _kl(of: Float[Tensor, "*rows events"], to: Float[Tensor, "*rows events"]) -> Float[Tensor, " *rows"]:
    return (of.exp() * (of - to)).sum(-1)
