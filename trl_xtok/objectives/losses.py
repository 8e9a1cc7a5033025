"""Objectives, as pure functions that return unreduced values.

Masking, counting and normalizing happen once, in the trainer.
"""

from jaxtyping import Float
from torch import Tensor


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
