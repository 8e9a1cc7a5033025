"""Log-probs of given tokens with Liger's fused linear cross-entropy.

Liger and Triton are imported on first use, so the package works without them.
"""

import math
from importlib import import_module
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from .torch_logps import IGNORED, Plan


def why_not_liger(hidden: Float[Tensor, "tokens hidden"], plan: Plan) -> str | None:
    """Reason why Liger cannot give exact log-probs for these hidden states, or `None` if it can."""
    if hidden.dtype == torch.float64:
        return "its kernels compute in float32, but the hidden states are float64"
    # Liger has no logit factor, so the hidden states carry it, and half precision rounds all but powers of two.
    if hidden.dtype != torch.float32 and abs(math.frexp(plan.factor)[0]) != 0.5:
        return f"the factor scale / temperature = {plan.factor} would be rounded into the {hidden.dtype} hidden states"
    try:
        kernel = import_module("liger_kernel.ops.cross_entropy").liger_cross_entropy_kernel
        interpreted = import_module("triton.runtime.interpreter").InterpretedFunction
    except ImportError as error:
        return f"it cannot be imported ({error})"
    if hidden.device.type not in ("cuda", "xpu") and not isinstance(kernel, interpreted):
        return f"its kernels need a Triton device or TRITON_INTERPRET=1, but the hidden states are on {hidden.device}"
    return None


def liger_logps(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " tokens"],
    plan: Plan,
    *,
    head_trains: bool,
) -> Float[Tensor, " tokens"]:
    """Log-probs of the targets in float32; needs at least one token and autocast switched off.

    Gradients are exact for any upstream gradient per token. With `head_trains=False` the head gets none.
    """
    # cap(scale * z) / temperature = cap'(z * scale / temperature) with the cap divided by the temperature.
    softcap = None if plan.softcap is None else plan.softcap / plan.temperature
    if plan.factor != 1.0:
        hidden = hidden * plan.factor
        bias = None if bias is None else bias * plan.factor
    hidden, weight = hidden.to(plan.dtype), weight.to(plan.dtype)
    bias = None if bias is None else bias.to(plan.dtype)
    apply = _trainable_head if head_trains else _frozen_head
    most, multiplier = _budget(len(hidden), len(weight), weight.shape[1], plan.block_size)
    pieces = zip(torch.split(hidden, most), torch.split(targets, most), strict=True)
    return torch.cat([apply(states, weight, bias, ids, softcap, multiplier) for states, ids in pieces])


def _budget(tokens: int, vocab_size: int, hidden_size: int, block_size: int) -> tuple[int, int]:
    """Most tokens per call, and the `chunk_mem_const`, for which Liger's blocks hold at most `block_size` tokens.

    Liger makes `ceil(vocab / (chunk_mem_const * hidden))` blocks and rounds their length up to a power of two.
    """
    longest = 1 << (block_size.bit_length() - 1)
    most = longest_call(vocab_size, hidden_size, block_size)
    blocks = -(-min(tokens, most) // longest)
    if blocks == 1:
        return most, -(-vocab_size // hidden_size)
    return most, (vocab_size - 1) // (hidden_size * (blocks - 1))


def longest_call(vocab_size: int, hidden_size: int, block_size: int) -> int:
    """Most tokens that Liger may be given at once if its blocks are to hold at most `block_size` tokens."""
    return (1 << (block_size.bit_length() - 1)) * -(-vocab_size // hidden_size)


def _trainable_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, multiplier: int
) -> Tensor:
    # Zero times the hidden state of an ignored token would not be zero if that is not a number.
    hidden = hidden.masked_fill((targets == IGNORED)[:, None], 0)
    extras = (False, torch.float32, False, False, False, None, None, multiplier)
    function = import_module("liger_kernel.ops").LigerFusedLinearCrossEntropyFunction
    losses, *_ = function.apply(hidden, weight, targets, bias, None, IGNORED, 0.0, 0.0, "none", softcap, *extras)
    return -losses


def _frozen_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None, multiplier: int
) -> Tensor:
    return cast(Any, _FrozenHead).apply(hidden, weight, bias, targets, softcap, multiplier)


class _FrozenHead(torch.autograd.Function):
    """Takes the derivative in the forward; Liger's own function computes the logits again, for the weight's sake."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        multiplier: int,
    ) -> Tensor:
        needs_grad: bool = ctx.needs_input_grad[0]
        losses, _, _, _, slopes, _, _ = import_module("liger_kernel.ops").fused_linear_cross_entropy_forward(
            hidden,
            weight,
            targets,
            bias=bias,
            ignore_index=IGNORED,
            reduction="none",
            softcap=softcap,
            compute_gradients=needs_grad,
            weight_requires_grad=False,
            chunk_mem_const=multiplier,
        )
        if needs_grad:
            ctx.save_for_backward(slopes)
        return -losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes,) = ctx.saved_tensors
        return (slopes * -grad_outputs[0][:, None]).to(slopes.dtype), None, None, None, None, None
