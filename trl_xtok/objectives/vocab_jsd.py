"""Generalised JSD between the next-token distributions of two models, without a `[tokens, vocab]` tensor.

The distributions are first mapped to events that both models can express: the whole vocabulary where both have the
same, the tokens that spell the same bytes, or classes of tokens. Logits exist for a few positions at a time.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ModelError
from .event_map import EventMap
from .logps import LMHead, default_block_size, make_plan
from .torch_logps import Plan, add_matmul_, write_logits


# At most this many tensors of the size of a block's logits live at one time (soft-cap, mixture and gradient together).
_BUFFERS = 8


class VocabJSD(NamedTuple):
    """What `vocab_jsd` returns, per position.

    Attributes:
        divergences: Generalised JSD of the two distributions, in nats, with gradient.
        log_ratios: `log T(event) - log S(event)` of the position's event of `sampled`, in nats, without gradient;
            `None` if no events were given.
    """

    divergences: Float[Tensor, " positions"]
    log_ratios: Float[Tensor, " positions"] | None


def vocab_jsd(
    student_hidden: Float[Tensor, "positions student_hidden"],
    student_head: LMHead,
    teacher_hidden: Float[Tensor, "positions teacher_hidden"],
    teacher_head: LMHead,
    *,
    student_events: EventMap,
    teacher_events: EventMap,
    beta: float = 0.5,
    temperature: float = 1.0,
    block_size: int | None = None,
    sampled: Int[Tensor, " positions"] | None = None,
) -> VocabJSD:
    """Generalised JSD between the two next-token distributions at each position, in nats; see `generalized_jsd`.

    Differentiable in the student's hidden states and, where it requires a gradient, in its head; the teacher is held
    fixed. With a frozen head nothing is computed twice; else the backward computes the logits of both sides once more.

    Args:
        student_hidden: Final hidden states of the student.
        student_head: Its head.
        teacher_hidden: Final hidden states of the teacher, at the same positions of the text.
        teacher_head: Its head.
        student_events: How the student's vocabulary makes up the events.
        teacher_events: The same for the teacher; the events are the same ones.
        beta: 0 forward KL, 1 reverse KL.
        temperature: Divides both sides' logits.
        block_size: As many logits as this number of positions has may be alive at a time, all intermediate results
            counted; `None` means `default_block_size` for the larger vocabulary.
        sampled: An event per position whose log-ratio is asked for; any where it will not be read.

    Raises:
        ConfigError: If temperature or block size is not positive.
        ModelError: If the two sides do not have the same number of positions.
    """
    if len(student_hidden) != len(teacher_hidden):
        raise ModelError(
            f"{len(student_hidden)} positions of the student were given with {len(teacher_hidden)} of the teacher. "
            "Select one hidden state per position on each side."
        )
    weight = student_head.weight
    size = default_block_size(max(len(weight), len(teacher_head.weight))) if block_size is None else block_size
    teacher = make_plan(teacher_head, teacher_hidden, temperature, size)
    pair = _Pair(
        student=make_plan(student_head, student_hidden, temperature, size),
        student_events=student_events,
        teacher=teacher,
        teacher_events=teacher_events,
        teacher_hidden=teacher_hidden.detach(),
        teacher_weight=teacher_head.weight.detach().to(teacher.dtype),
        teacher_bias=None if teacher_head.bias is None else teacher_head.bias.detach(),
        unreachable=student_events.without_tokens(),
        beta=beta,
        sampled=None if sampled is None else sampled[:, None],
    )
    hidden = student_hidden if torch.is_grad_enabled() else student_hidden.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        divergences, log_ratios = cast(Any, _VocabJSD).apply(
            hidden, weight, student_head.bias, pair, student_head.trains
        )
    return VocabJSD(divergences, None if sampled is None else log_ratios)


class _Pair(NamedTuple):
    student: Plan
    student_events: EventMap
    teacher: Plan
    teacher_events: EventMap
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    unreachable: Bool[Tensor, " events"] | None
    beta: float
    sampled: Int[Tensor, "positions 1"] | None

    def blocks(self) -> Iterator[slice]:
        size, total = max(1, self.student.block_size // _BUFFERS), len(self.teacher_hidden)
        return (slice(start, min(start + size, total)) for start in range(0, total, size))


class _VocabJSD(torch.autograd.Function):
    """Keeps `[positions, hidden]` for a frozen head and nothing but its inputs for a trainable one."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, pair: _Pair, head_trains: bool
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        keeps: bool = ctx.needs_input_grad[0] and not head_trains
        values = hidden.new_empty(len(hidden), dtype=pair.student.float_dtype)
        log_ratios = torch.empty_like(values)
        directions = torch.zeros_like(hidden, dtype=pair.student.float_dtype) if keeps else None
        head = weight.to(pair.student.dtype)
        for rows in pair.blocks():
            values[rows], pull = _compare(
                hidden[rows], head, bias, rows, pair, with_pull=keeps, log_ratios=log_ratios[rows]
            )
            if directions is not None and pull is not None:
                add_matmul_(directions[rows], pull.to(head.dtype), head)
            # Else it would live on while the next block is compared.
            del pull
        ctx.pair, ctx.head_trains = pair, head_trains
        ctx.save_for_backward(hidden, weight, bias) if head_trains else ctx.save_for_backward(directions)
        ctx.hidden_dtype = hidden.dtype
        ctx.mark_non_differentiable(log_ratios)
        return values, log_ratios

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        upstream = grad_outputs[0][:, None]
        if not ctx.head_trains:
            (directions,) = ctx.saved_tensors
            return (directions * upstream).to(ctx.hidden_dtype), None, None, None, None
        hidden, weight, bias = ctx.saved_tensors
        pair: _Pair = ctx.pair
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        float_dtype = pair.student.float_dtype
        grad_hidden = torch.zeros_like(hidden, dtype=float_dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=float_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=float_dtype) if needs_bias else None
        head = weight.to(pair.student.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in pair.blocks():
                _, pull = _compare(hidden[rows], head, bias, rows, pair, with_pull=True)
                pull = cast(Tensor, pull).mul_(upstream[rows])
                operand = pull.to(head.dtype)
                if grad_hidden is not None:
                    add_matmul_(grad_hidden[rows], operand, head)
                if grad_weight is not None:
                    add_matmul_(grad_weight, operand.T, hidden[rows].to(head.dtype))
                if grad_bias is not None:
                    grad_bias.add_(pull.sum(0))
                del pull, operand
        grads = [(grad_hidden, hidden), (grad_weight, weight), (grad_bias, bias)]
        return (*(None if grad is None else grad.to(of.dtype) for grad, of in grads), None, None)


def _compare(
    hidden: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    rows: slice,
    pair: _Pair,
    *,
    with_pull: bool,
    log_ratios: Float[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"] | None]:
    """Divergence of each row, and its derivative with respect to the student's `hidden @ head.T + bias`.

    The log-ratios of the sampled events are written to `log_ratios`.
    """
    states, weight = pair.teacher_hidden[rows], pair.teacher_weight
    logits, _ = _logits(states, weight, pair.teacher_bias, pair.teacher, with_slope=False)
    teacher = pair.teacher_events.event_logps(pair.teacher_events.token_logps_(logits))
    logits, slope = _logits(hidden, head, bias, pair.student, with_slope=with_pull)
    tokens = pair.student_events.token_logps_(logits)
    student = pair.student_events.event_logps(tokens)
    if log_ratios is not None and pair.sampled is not None:
        events = pair.sampled[rows]
        log_ratios.copy_((teacher.gather(1, events) - student.gather(1, events)).squeeze(1))
    value, pull = _jsd_and_pull(student, teacher.to(student.dtype), pair.beta, pair.unreachable)
    if not with_pull:
        return value, None
    pull = pair.student_events.spread(pull, student, tokens, len(head)).mul_(pair.student.factor)
    return value, pull if slope is None else pull.mul_(slope)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, *, with_slope: bool
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows vocab"] | None]:
    logits = hidden.new_empty(len(hidden), len(weight), dtype=plan.float_dtype)
    return logits, write_logits(logits, hidden.to(plan.dtype), weight, bias, plan, with_slope=with_slope)


def _jsd_and_pull(
    student: Float[Tensor, "rows events"],
    teacher: Float[Tensor, "rows events"],
    beta: float,
    unreachable: Bool[Tensor, " events"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows events"]]:
    """Generalised JSD, and its derivative with respect to the student's logits of the events."""
    own = student.exp()
    if beta == 0:
        target = teacher.exp()
        value = (target * (teacher - student)).sum(1)
        if unreachable is not None:
            # What no token of the student makes up pulls at nothing.
            target.masked_fill_(unreachable, 0)
        return value, own.mul_(target.sum(dim=1, keepdim=True)).sub_(target)
    mixture = teacher
    if beta < 1:
        mixture = student + math.log1p(-beta)
        torch.logaddexp(mixture, teacher + math.log(beta), out=mixture)
    weighted = (student - mixture).mul_(own)
    total = weighted.sum(dim=1, keepdim=True)
    pull = weighted.sub_(own.mul_(total))
    if beta == 1:
        return total.squeeze(1), pull
    from_teacher = teacher.exp().mul_(teacher - mixture).sum(1)
    return beta * from_teacher + (1 - beta) * total.squeeze(1), pull.mul_(1 - beta)
