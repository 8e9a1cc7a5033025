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
from .logps import LOGITS_BYTES, LMHead, make_plan
from .torch_logps import Plan, add_matmul_, write_logits


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
            counted, for the larger vocabulary; `None` keeps them under 32 MiB. One position is the least, and takes up
            to eight times its logits.
        sampled: An event per position whose log-ratio is asked for; any where it will not be read.

    Raises:
        ConfigError: If temperature or block size is not positive.
        ModelError: If the two sides do not have the same number of positions and events.
    """
    weight = student_head.weight
    _check_sides(len(student_hidden), student_events.count(len(weight)), teacher_hidden, teacher_head, teacher_events)
    asked_size = 1 if block_size is None else block_size
    student = make_plan(student_head, student_hidden, temperature, asked_size)
    with torch.autocast(student_hidden.device.type, enabled=False):
        # The teacher is scored in its own precision, as its log-probs are.
        teacher = make_plan(teacher_head, teacher_hidden, temperature, asked_size)
    pair = _Pair(
        rows_per_block=_rows_per_block(weight, teacher_head.weight, student_events, student, teacher, block_size),
        student=student,
        student_events=student_events,
        teacher=teacher,
        teacher_events=teacher_events,
        teacher_hidden=teacher_hidden.detach(),
        teacher_weight=teacher_head.weight.detach().to(teacher.dtype),
        teacher_bias=None if teacher_head.bias is None else teacher_head.bias.detach(),
        beta=beta,
        sampled=None if sampled is None else sampled[:, None],
    )
    hidden = student_hidden if torch.is_grad_enabled() else student_hidden.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        results = cast(Any, _VocabJSD).apply(hidden, weight, student_head.bias, pair, student_head.trains)
    return VocabJSD(results[0], None if sampled is None else results[1])


def _check_sides(
    positions: int, num_events: int, teacher_hidden: Tensor, teacher_head: LMHead, teacher_events: EventMap
) -> None:
    if positions != len(teacher_hidden):
        raise ModelError(
            f"{positions} positions of the student were given with {len(teacher_hidden)} of the teacher. Select one "
            "hidden state per position on each side."
        )
    others = teacher_events.count(len(teacher_head.weight))
    if num_events != others:
        raise ModelError(
            f"The student's tokens make up {num_events} events and the teacher's {others}. Give each side an "
            "`EventMap` of the same events, in the same order."
        )


def _rows_per_block(
    weight: Tensor, teacher_weight: Tensor, events: EventMap, student: Plan, teacher: Plan, block_size: int | None
) -> int:
    """How many positions are compared at a time, by how many numbers live for each of them."""
    own = len(weight) * ((3 if events.classes is not None else 2) + (2 if student.softcap else 0))
    others = len(teacher_weight) * (2 if teacher.softcap else 1)
    room = LOGITS_BYTES // 4 if block_size is None else block_size * max(len(weight), len(teacher_weight))
    return max(1, room // (own + others + 4 * events.count(len(weight))))


class _Pair(NamedTuple):
    rows_per_block: int
    student: Plan
    student_events: EventMap
    teacher: Plan
    teacher_events: EventMap
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    beta: float
    sampled: Int[Tensor, "positions 1"] | None

    def buffers(self, student_hidden: Tensor, student_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for the logits of a block of either side; new memory for each block would cost more than its use."""
        rows, theirs = min(self.rows_per_block, len(student_hidden)), self.teacher_weight
        return (
            student_weight.new_empty(rows * len(student_weight), dtype=self.student.float_dtype),
            theirs.new_empty(rows * len(theirs), dtype=self.teacher.float_dtype),
        )

    def blocks(self) -> Iterator[slice]:
        size, total = self.rows_per_block, len(self.teacher_hidden)
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
        buffers = pair.buffers(hidden, head)
        for rows in pair.blocks():
            values[rows], pull = _compare(
                hidden[rows], head, bias, rows, pair, buffers, with_pull=keeps, log_ratios=log_ratios[rows]
            )
            if directions is not None and pull is not None:
                operand, scale = _to_operand(pull, head.dtype)
                add_matmul_(directions[rows], operand, head)
                directions[rows] *= scale
                del operand
            # Else it would live on while the next block is compared.
            del pull
        # The pair holds on to the teacher's side, which only a trainable head needs again.
        ctx.pair, ctx.head_trains = (pair if head_trains else None), head_trains
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
        buffers = pair.buffers(hidden, head)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in pair.blocks():
                _, pull = _compare(hidden[rows], head, bias, rows, pair, buffers, with_pull=True)
                pull = cast(Tensor, pull).mul_(upstream[rows])
                operand, scale = _to_operand(pull, head.dtype)
                if grad_hidden is not None:
                    add_matmul_(grad_hidden[rows], operand, head)
                    grad_hidden[rows] *= scale
                if grad_weight is not None:
                    add_matmul_(grad_weight, operand.T, (hidden[rows] * scale).to(head.dtype))
                if grad_bias is not None:
                    grad_bias.add_(pull.sum(0))
                del pull, operand
        grads = [(grad_hidden, hidden), (grad_weight, weight), (grad_bias, bias)]
        return (*(None if grad is None else grad.to(of.dtype) for grad, of in grads), None, None)


def _to_operand(
    pull: Float[Tensor, "rows vocab"], dtype: torch.dtype
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows 1"]]:
    """The pull in the dtype of the head, and what each row was divided by: half precision ends at 6e-8."""
    if pull.dtype == dtype:
        return pull, pull.new_ones(len(pull), 1)
    scale = pull.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(pull.dtype).tiny)
    return (pull / scale).to(dtype), scale


def _compare(
    hidden: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    rows: slice,
    pair: _Pair,
    buffers: tuple[Tensor, Tensor],
    *,
    with_pull: bool,
    log_ratios: Float[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows vocab"] | None]:
    """Divergence of each row, and its derivative with respect to the student's `hidden @ head.T + bias`.

    The log-ratios of the sampled events are written to `log_ratios`.
    """
    logits, _ = _logits(buffers[1], pair.teacher_hidden[rows], pair.teacher_weight, pair.teacher_bias, pair.teacher)
    teacher = pair.teacher_events.event_logps_(logits).logps
    logits, slope = _logits(buffers[0], hidden, head, bias, pair.student, with_slope=with_pull)
    student = pair.student_events.event_logps_(logits)
    if log_ratios is not None and pair.sampled is not None:
        events = pair.sampled[rows]
        log_ratios.copy_((teacher.gather(1, events) - student.logps.gather(1, events)).squeeze(1))
    # The pull takes the place of the student's log-probs.
    value, pull = _jsd_and_pull_(student.logps, teacher.to(student.logps.dtype), pair.beta, pair.student_events.empty)
    if not with_pull:
        return value, None
    pull = pair.student_events.spread_(pull, student, len(head)).mul_(pair.student.factor)
    return value, pull if slope is None else pull.mul_(slope)


def _logits(
    buffer: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: Plan,
    *,
    with_slope: bool = False,
) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, "rows vocab"] | None]:
    # Rows lie next to each other, as an `EventMap` needs them.
    logits = buffer[: len(weight) * len(hidden)].view(len(weight), len(hidden)).T
    return logits, write_logits(logits, hidden.to(plan.dtype), weight, bias, plan, with_slope=with_slope)


def _jsd_and_pull_(
    student: Float[Tensor, "rows events"],
    teacher: Float[Tensor, "rows events"],
    beta: float,
    unreachable: Bool[Tensor, " events"] | None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows events"]]:
    """Generalised JSD, and its derivative with respect to the student's logits of the events; both are used up."""
    own = student.exp()
    if beta == 0:
        target = teacher.exp()
        value = teacher.sub_(student).mul_(target).sum(1)
        if unreachable is not None:
            # What no token of the student makes up pulls at nothing.
            target.masked_fill_(unreachable, 0)
        return value, own.mul_(target.sum(dim=1, keepdim=True)).sub_(target)
    mixture = teacher
    if beta < 1:
        mixture = torch.add(student, math.log1p(-beta))
        torch.logaddexp(mixture, teacher.add_(math.log(beta)), out=mixture)
        teacher.sub_(math.log(beta))
    weighted = student.sub_(mixture).mul_(own)
    total = weighted.sum(dim=1, keepdim=True)
    pull = weighted.addcmul_(own, total, value=-1)
    if beta == 1:
        return total.squeeze(1), pull
    from_teacher = torch.sub(teacher, mixture, out=mixture).mul_(teacher.exp_()).sum(1)
    return beta * from_teacher + (1 - beta) * total.squeeze(1), pull.mul_(1 - beta)
