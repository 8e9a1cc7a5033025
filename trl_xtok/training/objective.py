"""What an optimizer step minimises: the student's log-probs of a micro-batch -> one loss per token."""

from jaxtyping import Bool, Float
from torch import Tensor, zeros_like

from ..objectives import chunk_jsd, chunk_rkl, chunk_sizes, reverse_kl_estimate, sum_by_chunk
from .advantages import credit_tokens
from .config import CrossTokenizerGKDConfig
from .window import MicroBatch


def token_losses(
    student_logps: Float[Tensor, " tokens"], batch: MicroBatch, args: CrossTokenizerGKDConfig
) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
    """The loss of each completion token by `args.objective`, and the sums that `RunMetrics` takes.

    Tokens that are neither scored nor charged get 0.

    Args:
        student_logps: Log-prob of each completion token, with gradient.
        batch: The micro-batch they belong to.
        args: The training arguments.
    """
    if args.objective == "chunk_jsd":
        teacher, options = batch.teacher_logps, {"beta": args.beta, "temperature": args.chunk_temperature}
        losses = chunk_jsd(student_logps, teacher, batch.chunks, **options)
        clipped = zeros_like(batch.charged)
    else:
        credited = credit_tokens(student_logps, batch, args)
        losses, clipped = chunk_rkl(student_logps, credited.advantages), credited.clipped
    return losses, _report(student_logps.detach(), batch, clipped)


def _report(
    student_logps: Float[Tensor, " tokens"], batch: MicroBatch, clipped: Bool[Tensor, " tokens"]
) -> dict[str, Tensor]:
    trained = chunk_sizes(batch.chunks, batch.num_chunks) > 0
    log_ratios = reverse_kl_estimate(sum_by_chunk(student_logps, batch.chunks, batch.num_chunks), batch.teacher_logps)
    ends = trained & (batch.chunk_bytes == 0)
    texts = trained & ~ends
    return {
        "trained": (batch.chunks >= 0).sum(),
        "clipped": clipped.sum(),
        "log_ratio": log_ratios[texts].sum(),
        "bytes": batch.chunk_bytes[texts].sum(),
        "end_log_ratio": log_ratios[ends].sum(),
        "ends": ends.sum(),
    }
