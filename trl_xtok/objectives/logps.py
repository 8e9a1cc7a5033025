"""Log-probs of given tokens from hidden states, without a `[tokens, vocab]` tensor.

The only inputs are final hidden states, the output projection and one target id per token. No more logits than those
of one block of tokens exist at a time, in the forward and in the backward pass. Two backends return the same numbers:
a torch loop that runs everywhere, and Liger's fused linear cross-entropy for devices with Triton.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ConfigError, ModelError
from .liger_logps import liger_logps, why_not_liger
from .torch_logps import IGNORED, FrozenHeadLogps, Plan, TrainableHeadLogps


LOGITS_BYTES = 32 * 2**20

Backend = Literal["auto", "liger", "torch"]


@dataclass(frozen=True, slots=True)
class LMHead:
    """The projection from hidden states to logits: `cap(scale * (hidden @ weight.T + bias))`.

    Attributes:
        weight: Floating point; a quantized weight must be dequantized by the caller.
        bias: Added before scale and cap.
        softcap: Logits `z` become `softcap * tanh(z / softcap)` (Gemma 2). `None` leaves them alone.
        scale: Multiplies the logits before the cap (Cohere's `logit_scale`).

    Raises:
        ModelError: If a part does not fit the others or has no exact reading.
    """

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"] | None = None
    softcap: float | None = None
    scale: float = 1.0

    @property
    def trains(self) -> bool:
        """Whether a gradient of its weight or bias is asked for."""
        wanted = self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        return torch.is_grad_enabled() and wanted

    def to(self, device: torch.device) -> "LMHead":
        """The head on a device; itself if it is there."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or not self.weight.is_floating_point():
            raise ModelError(
                f"The head's weight has shape {tuple(self.weight.shape)} and dtype {self.weight.dtype}, but a "
                "floating point [vocab, hidden] matrix is needed. Dequantize or gather the weight first."
            )
        if self.bias is not None and self.bias.shape != self.weight.shape[:1]:
            raise ModelError(
                f"The head's bias has shape {tuple(self.bias.shape)}, but its weight has {len(self.weight)} rows. "
                "Pass one bias per vocabulary entry."
            )
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise ModelError(
                f"The logit soft-cap is {self.softcap}, but it must be positive and finite. Pass None for no cap."
            )
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ModelError(
                f"The logit scale is {self.scale}, which leaves no distribution. Pass the model's own scale, or 1.0."
            )


def default_block_size(vocab_size: int) -> int:
    """Largest power of two of tokens whose float32 logits stay under 32 MiB, at least 1.

    Example:
        >>> default_block_size(128_256), default_block_size(10**8)
        (64, 1)
    """
    tokens = (LOGITS_BYTES - 1) // (4 * vocab_size)
    return 1 << max(tokens.bit_length() - 1, 0)


def token_logps(
    hidden: Float[Tensor, "tokens hidden"],
    lm_head: LMHead | Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, " tokens"]:
    """Log-prob of each target token under `softmax(logits / temperature)`, differentiable.

    At most `block_size * vocab` float32 logits are alive at a time in the forward and in the backward pass (half
    precision adds a copy of the block in its own dtype). A frozen head costs one matmul more than the logits, keeps
    one `[tokens, hidden]` tensor for the backward and never holds a weight gradient. A trainable head computes the
    logits once more in the backward and adds up its gradient in float32.

    Matmuls run in the autocast dtype under autocast, else in the dtype of `hidden`; a head of another dtype is cast
    to it. Softmax and result are float32, or float64 for float64 `hidden`.

    Args:
        hidden: Final hidden states, after the last norm, each at the position that predicts its target.
        lm_head: The head, or just its weight.
        targets: Vocabulary ids. `-100` gives the log-prob 0 and no gradient, whatever its hidden state holds.
        temperature: Divides the logits after scale and cap.
        block_size: As many logits as this number of tokens has may be alive; `None` means `default_block_size`. The
            torch loop cuts them into tiles of more tokens and fewer vocabulary entries, Liger into blocks of whole
            tokens whose number is a power of two.
        backend: `"auto"` takes Liger on CUDA where it is installed and exact, else torch. Liger folds
            `scale / temperature` into `hidden`, which in half precision is exact for powers of two only.

    Raises:
        ConfigError: If temperature or block size is not positive, or `"liger"` cannot serve the request.
        ModelError: If the shapes do not fit or a target is outside the vocabulary.

    Example:
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])
        >>> token_logps(hidden, weight, torch.tensor([1, -100])).exp()
        tensor([0.3333, 1.0000])
    """
    head = lm_head if isinstance(lm_head, LMHead) else LMHead(lm_head)
    weight, bias = head.weight, head.bias
    plan = make_plan(head, hidden, temperature, default_block_size(len(weight)) if block_size is None else block_size)
    use_liger = _use_liger(backend, hidden, plan)
    _check(hidden, weight, targets)
    # A custom function is told which inputs need a gradient, but not that gradients are switched off.
    hidden = hidden if torch.is_grad_enabled() else hidden.detach()
    head_trains = head.trains
    with torch.autocast(hidden.device.type, enabled=False):
        if use_liger and len(targets) > 0:
            return liger_logps(hidden, weight, bias, targets, plan, head_trains=head_trains)
        function = cast(Any, TrainableHeadLogps if head_trains else FrozenHeadLogps)
        return function.apply(hidden, weight, bias, targets, plan)


def make_plan(head: LMHead, hidden: Float[Tensor, "tokens hidden"], temperature: float, block_size: int) -> Plan:
    """How the logits of `head` come out of `hidden`.

    Raises:
        ConfigError: If temperature or block size is not positive.
    """
    if not 0 < temperature < math.inf or block_size < 1:
        raise ConfigError(
            f"temperature={temperature} and block_size={block_size} were given, but logits can only be divided by a "
            "positive finite temperature and handled in blocks of at least one token. Pass positive values."
        )
    return Plan(head.scale, head.softcap, temperature, block_size, _matmul_dtype(hidden))


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    # Like torch's own autocast, which leaves float64 alone.
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _use_liger(backend: Backend, hidden: Tensor, plan: Plan) -> bool:
    if backend == "torch" or (backend == "auto" and not hidden.is_cuda):
        return False
    problem = why_not_liger(hidden, plan)
    if problem is not None and backend == "liger":
        raise ConfigError(f"Liger cannot compute these log-probs: {problem}. Use the backend 'auto' or 'torch'.")
    return problem is None


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.shape != (len(targets), weight.shape[1]) or not hidden.is_floating_point():
        raise ModelError(
            f"The hidden states have shape {tuple(hidden.shape)} and dtype {hidden.dtype}, but {len(targets)} targets "
            f"and a head of width {weight.shape[1]} need floating point [{len(targets)}, {weight.shape[1]}]. Select "
            "one hidden state per target."
        )
    # This waits for the device once, but neither backend would notice: no tile holds the id, Liger reads past the row.
    wrong = targets[(targets != IGNORED) & ((targets < 0) | (targets >= len(weight)))]
    if len(wrong) > 0:
        raise ModelError(
            f"Target {wrong[0].item()} is outside the head's vocabulary of {len(weight)} entries, so it has no "
            "log-prob. Use ids of this model's tokenizer, and -100 for tokens without one."
        )
