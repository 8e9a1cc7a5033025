"""Log-probs of given tokens in tiles of logits, with torch alone.

A tile is the logits of many tokens for a stretch of the vocabulary, so the head is read once for all of those tokens
and not once for every few. Softmax runs over the tiles as they come, in place. For a frozen head the derivative with
respect to the hidden state is added up in the same pass: the output is one number per token, so nothing has to be
computed again.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


IGNORED = -100
MOST_ROWS = 2048


class Plan(NamedTuple):
    """How logits come out of `hidden @ weight.T + bias`, and how the work is cut up.

    Attributes:
        scale: Multiplies the raw values.
        softcap: Values `z` become `softcap * tanh(z / softcap)` after that; `None` for no cap.
        temperature: Divides what comes out.
        block_size: As many logits as this number of tokens has may be alive at a time.
        dtype: Dtype of the operands of every matmul with the head.
    """

    scale: float
    softcap: float | None
    temperature: float
    block_size: int
    dtype: torch.dtype

    @property
    def factor(self) -> float:
        """Derivative of a logit with respect to its raw value, the slope of the cap apart."""
        return self.scale / self.temperature

    @property
    def float_dtype(self) -> torch.dtype:
        """Dtype of everything that is not an operand of a matmul."""
        return torch.promote_types(self.dtype, torch.float32)

    def tile_shape(self, tokens: int, vocab_size: int, *, with_slope: bool) -> tuple[int, int]:
        """Rows and columns of a tile; the slope of the cap takes the place of half of it."""
        logits = self.block_size * vocab_size // (2 if with_slope and self.softcap is not None else 1)
        rows = max(1, min(tokens, MOST_ROWS, math.isqrt(logits)))
        columns = max(1, min(vocab_size, logits // rows))
        return rows, columns - columns % 64 if 64 < columns < vocab_size else columns

    def to_logits_(self, raw: Tensor, *, with_slope: bool) -> Tensor | None:
        """Turn raw values into logits in place; returns the slope of the cap if there is one and it is asked for."""
        if self.softcap is None:
            if self.factor != 1.0:
                raw.mul_(self.factor)
            return None
        raw.mul_(self.scale / self.softcap).tanh_()
        slope = raw.square().neg_().add_(1) if with_slope else None
        raw.mul_(self.softcap / self.temperature)
        return slope

    def slope_at(self, logits: Tensor) -> Tensor | float:
        """Slope of the cap where it gave these logits."""
        return 1.0 if self.softcap is None else 1 - (logits * (self.temperature / self.softcap)).square()


class FrozenHeadLogps(torch.autograd.Function):
    """Log-probs whose only gradient is that of the hidden states; keeps `[tokens, hidden]`, or nothing."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
    ) -> Float[Tensor, " tokens"]:
        """Log-probs, and their derivatives with respect to `hidden` if it needs a gradient."""
        needs_grad: bool = ctx.needs_input_grad[0]
        ids, ignored = _ids(targets)
        head = weight.to(plan.dtype)
        logps = hidden.new_empty(len(targets), dtype=plan.float_dtype)
        # float16 has no room for the derivative of a token that is almost certain.
        kept_dtype = torch.float32 if hidden.dtype == torch.float16 else hidden.dtype
        directions = hidden.new_empty(hidden.shape if needs_grad else (0,), dtype=kept_dtype)
        for rows in _row_groups(hidden, head, plan, with_slope=needs_grad):
            scores = _score(hidden[rows], head, bias, ids[rows], plan, with_direction=needs_grad)
            logps[rows] = scores.logps
            if scores.directions is not None:
                directions[rows] = scores.directions
        if needs_grad:
            ctx.save_for_backward(directions.masked_fill_(ignored[:, None], 0))
            ctx.hidden_dtype = hidden.dtype
        return logps.masked_fill_(ignored, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradient of the hidden states."""
        (directions,) = ctx.saved_tensors
        return (directions * grad_outputs[0][:, None]).to(ctx.hidden_dtype), None, None, None, None


class TrainableHeadLogps(torch.autograd.Function):
    """Log-probs with gradients of hidden states, weight and bias; the backward computes the logits once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, plan: Plan
    ) -> Float[Tensor, " tokens"]:
        """Log-probs; keeps references to the inputs and three numbers per token."""
        ids, ignored = _ids(targets)
        head = weight.to(plan.dtype)
        logps = hidden.new_empty(len(targets), dtype=plan.float_dtype)
        # Their sum would lose digits where all logits are large.
        largest, log_totals, others = logps.new_empty(3, len(logps))
        for rows in _row_groups(hidden, head, plan, with_slope=False):
            # An ignored state may hold anything; the backward multiplies by zero what comes of it.
            states = hidden[rows].masked_fill(ignored[rows, None], 0)
            scores = _score(states, head, bias, ids[rows], plan, with_direction=False)
            logps[rows], largest[rows], log_totals[rows], others[rows] = scores[:4]
        ctx.save_for_backward(hidden, weight, bias, targets, largest, log_totals, others)
        ctx.plan = plan
        return logps.masked_fill_(ignored, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of hidden states, weight and bias, those that are needed."""
        hidden, weight, bias, targets, largest, log_totals, others = ctx.saved_tensors
        plan: Plan = ctx.plan
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        ids, ignored = _ids(targets)
        head = weight.to(plan.dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=plan.float_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=plan.float_dtype) if needs_bias else None
        pulls = (grad_outputs[0] * -plan.factor).masked_fill_(ignored, 0)[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _row_groups(hidden, head, plan, with_slope=True):
                states = hidden[rows].masked_fill(ignored[rows, None], 0)
                pulled = (states * pulls[rows]).to(plan.dtype)
                pushed = torch.zeros_like(states, dtype=plan.float_dtype)
                for columns, tile, slope in _tiles(states, head, bias, plan, with_slope=True):
                    tile.sub_(largest[rows, None]).sub_(log_totals[rows, None]).exp_()
                    local, inside = locate(ids[rows], columns)
                    # For a token that is almost certain, its probability less 1 would have no digits left.
                    tile.scatter_(1, local, torch.where(inside, -others[rows, None], tile.gather(1, local)))
                    if slope is not None:
                        tile.mul_(slope)
                    operand = tile.to(plan.dtype)
                    if needs_hidden:
                        add_matmul_(pushed, operand, head[columns])
                    if grad_weight is not None:
                        add_matmul_(grad_weight[columns], operand.T, pulled)
                    if grad_bias is not None:
                        grad_bias[columns].addmv_(tile.T, pulls[rows, 0])
                if grad_hidden is not None:
                    grad_hidden[rows] = pushed.mul_(pulls[rows])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


class _Scores(NamedTuple):
    """`log_totals` are log-sum-exps relative to the largest logits, `others` the probabilities of all other ids."""

    logps: Float[Tensor, " rows"]
    largest: Float[Tensor, " rows"]
    log_totals: Float[Tensor, " rows"]
    others: Float[Tensor, " rows"]
    directions: Float[Tensor, "rows hidden"] | None


def _score(
    hidden: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    ids: Int[Tensor, "rows 1"],
    plan: Plan,
    *,
    with_direction: bool,
) -> _Scores:
    """Log-probs of the ids, what they were normalized by, and their derivatives with respect to `hidden`."""
    largest = hidden.new_full(ids.shape, torch.finfo(plan.float_dtype).min, dtype=plan.float_dtype)
    others, logits = torch.zeros_like(largest), torch.zeros_like(largest)
    mixture = torch.zeros_like(hidden, dtype=plan.float_dtype) if with_direction else None
    for columns, tile, slope in _tiles(hidden, head, bias, plan, with_slope=with_direction):
        local, inside = locate(ids, columns)
        logits = tile.gather(1, local).where(inside, logits)
        raised = largest.maximum(tile.amax(dim=1, keepdim=True))
        shrink = (largest - raised).exp_()
        largest = raised
        tile.sub_(largest).exp_()
        # The target is left out: next to it the rest of a confident token's distribution would be lost in rounding.
        tile.scatter_add_(1, local, -tile.gather(1, local) * inside)
        others = others * shrink + tile.sum(dim=1, keepdim=True)
        if mixture is not None:
            operand = (tile if slope is None else tile.mul_(slope)).to(plan.dtype)
            add_matmul_(mixture.mul_(shrink), operand, head[columns])
    own = (logits - largest).exp_()
    total = others + own
    logps = torch.where(own > others, -(others / own).log1p(), logits - largest - total.log())
    directions = None
    if mixture is not None:
        targets = head[ids.squeeze(1)] * (others * plan.slope_at(logits))
        directions = targets.sub_(mixture).mul_(plan.factor / total)
    parts = (each.squeeze(1) for each in (logps, largest, total.log(), others / total))
    return _Scores._make((*parts, directions))


def _ids(targets: Int[Tensor, " tokens"]) -> tuple[Int[Tensor, "tokens 1"], Bool[Tensor, " tokens"]]:
    """Targets as a column of ids that can be gathered, and which tokens are ignored."""
    ignored = targets == IGNORED
    return targets.masked_fill(ignored, 0).long()[:, None], ignored


def _row_groups(hidden: Tensor, head: Tensor, plan: Plan, *, with_slope: bool) -> Iterator[slice]:
    size, _ = plan.tile_shape(len(hidden), len(head), with_slope=with_slope)
    return slices(len(hidden), size)


def _tiles(
    hidden: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    plan: Plan,
    *,
    with_slope: bool,
) -> Iterator[tuple[slice, Float[Tensor, "rows columns"], Float[Tensor, "rows columns"] | None]]:
    """Columns, their logits and the slope of the cap, tile by tile; all tiles share one buffer."""
    rows, vocab_size = len(hidden), len(head)
    _, width = plan.tile_shape(rows, vocab_size, with_slope=with_slope)
    buffer = hidden.new_empty(rows * width, dtype=plan.float_dtype)
    operand = hidden.to(plan.dtype)
    for columns in slices(vocab_size, width):
        tile = buffer[: rows * (columns.stop - columns.start)].view(rows, -1)
        tile_bias = None if bias is None else bias[columns]
        yield columns, tile, write_logits(tile, operand, head[columns], tile_bias, plan, with_slope=with_slope)


def slices(total: int, size: int) -> Iterator[slice]:
    """Stretches of so many of a total, the last one shorter."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def locate(ids: Int[Tensor, "rows 1"], columns: slice) -> tuple[Int[Tensor, "rows 1"], Bool[Tensor, "rows 1"]]:
    """The ids as columns of a tile, and whether they are in it; those that are not stand at its border."""
    width = columns.stop - columns.start
    local = ids - columns.start
    return local.clamp(0, width - 1), (local >= 0) & (local < width)


def write_logits(
    out: Float[Tensor, "rows columns"],
    operand: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "columns hidden"],
    bias: Float[Tensor, " columns"] | None,
    plan: Plan,
    *,
    with_slope: bool,
) -> Float[Tensor, "rows columns"] | None:
    """Fill `out` with logits; returns the slope of the cap if there is one and it is asked for."""
    _matmul(operand, head.T, out=out)
    if bias is not None:
        out.add_(bias)
    return plan.to_logits_(out, with_slope=with_slope)


def _matmul(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Product in the dtype of `out`; half precision is not rounded on the way there where the device can."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif sums_in_float32(left):
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(left @ right)


def add_matmul_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product, likewise."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif sums_in_float32(left):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.add_(left @ right)


def sums_in_float32(operand: Tensor) -> bool:
    """Whether products of half precision come out in float32 there."""
    # `out_dtype` exists on CUDA only, and older devices (T4) lack the kernels.
    return operand.is_cuda and operand.itemsize == 2 and torch.cuda.get_device_capability(operand.device) >= (8, 0)
