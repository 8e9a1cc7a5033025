"""Generalised JSD between the next-token distributions of two models, without a `[tokens, vocab]` tensor.

The distributions are first mapped to events that both models can express: the whole vocabulary where both have the
same, the tokens that spell the same bytes, or classes of tokens. Logits exist for a few positions at a time.
"""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import ConfigError, ModelError
from .event_map import EventMap
from .jsd_block import Pair, compare_block
from .logps import LMHead, make_plan
from .torch_logps import add_matmul_


# Counts for any smaller bias of a head; an infinite one would give no number, at a probability of zero.
LEAST_BIAS = -1e4


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
            counted, for the larger vocabulary; `None` keeps them under 50 MiB. One position is the least, and takes up
            to four times its logits.
        sampled: An event per position whose log-ratio is asked for; NaN comes out where there is no such event.

    Raises:
        ConfigError: If temperature or block size is not positive, or beta outside [0, 1].
        ModelError: If the sides differ in positions or events, or have classes without columns for part of a head.
    """
    student_head, teacher_head = _finite(student_head), _finite(teacher_head)
    sides = (student_hidden, student_head, student_events), (teacher_hidden, teacher_head, teacher_events)
    _check(*sides, beta)
    asked_size = 1 if block_size is None else block_size
    student = make_plan(student_head, student_hidden, temperature, asked_size)
    with torch.autocast(student_hidden.device.type, enabled=False):
        # The teacher is scored in its own precision, as its log-probs are.
        teacher = make_plan(teacher_head, teacher_hidden, temperature, asked_size)
    pair = Pair(
        student=student,
        student_events=student_events,
        teacher=teacher,
        teacher_events=teacher_events,
        teacher_hidden=teacher_hidden.detach(),
        teacher_weight=teacher_head.weight.detach().to(teacher.dtype),
        teacher_bias=None if teacher_head.bias is None else teacher_head.bias.detach(),
        beta=beta,
        sampled=None if sampled is None else sampled[:, None],
        block_size=block_size,
    )
    hidden = student_hidden if torch.is_grad_enabled() else student_hidden.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        results = cast(Any, _VocabJSD).apply(hidden, student_head.weight, student_head.bias, pair, student_head.trains)
    return VocabJSD(results[0], None if sampled is None else results[1])


def _finite(head: LMHead) -> LMHead:
    return head if head.bias is None else replace(head, bias=head.bias.clamp(min=LEAST_BIAS))


def _check(student: tuple[Tensor, LMHead, EventMap], teacher: tuple[Tensor, LMHead, EventMap], beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ConfigError(f"`beta` must be in [0, 1], got {beta}.")
    for _, head, events in (student, teacher):
        if events.columns is None and events.classes is not None and len(events.classes) != len(head.weight):
            raise ModelError(
                f"{len(events.classes)} classes were given for a head of {len(head.weight)} tokens. Give the tokens "
                "that have a class as `columns`."
            )
    if len(student[0]) != len(teacher[0]):
        raise ModelError(
            f"{len(student[0])} positions of the student were given with {len(teacher[0])} of the teacher. Select one "
            "hidden state per position on each side."
        )
    ours, theirs = (events.count(len(head.weight)) for _, head, events in (student, teacher))
    if ours != theirs:
        raise ModelError(
            f"The student's tokens make up {ours} events and the teacher's {theirs}. Give each side an `EventMap` of "
            "the same events, in the same order."
        )


class _VocabJSD(torch.autograd.Function):
    """Keeps `[positions, hidden]` for a frozen head and nothing but its inputs for a trainable one."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, pair: Pair, head_trains: bool
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        keeps: bool = ctx.needs_input_grad[0] and not head_trains
        values = hidden.new_empty(len(hidden), dtype=pair.student.float_dtype)
        log_ratios = torch.full_like(values, torch.nan)
        directions = torch.zeros_like(hidden, dtype=pair.student.float_dtype) if keeps else None
        head = weight.to(pair.student.dtype)
        buffers = pair.buffers(head)
        for rows in pair.blocks(len(head)):
            values[rows], pull = compare_block(
                hidden[rows], head, bias, rows, pair, buffers, with_pull=keeps, log_ratios=log_ratios[rows]
            )
            if directions is not None and pull is not None:
                operand, scale = _to_operand(pull, head.dtype)
                add_matmul_(directions[rows], operand.T, head)
                directions[rows] *= scale * pair.pull_factor
                # Else it would live on while the next block is compared.
                del operand
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
        pair: Pair = ctx.pair
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        float_dtype = pair.student.float_dtype
        grad_hidden = torch.zeros_like(hidden, dtype=float_dtype) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=float_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=float_dtype) if needs_bias else None
        head = weight.to(pair.student.dtype)
        buffers = pair.buffers(head)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in pair.blocks(len(head)):
                _, pull = compare_block(hidden[rows], head, bias, rows, pair, buffers, with_pull=True)
                weights = upstream[rows] * pair.pull_factor
                if grad_bias is not None:
                    grad_bias.addmv_(cast(Tensor, pull), weights[:, 0])
                operand, scale = _to_operand(cast(Tensor, pull), head.dtype)
                scale = scale * weights
                if grad_hidden is not None:
                    add_matmul_(grad_hidden[rows], operand.T, head)
                    grad_hidden[rows] *= scale
                if grad_weight is not None:
                    add_matmul_(grad_weight, operand, (hidden[rows] * scale).to(head.dtype))
                del operand
        grads = [(grad_hidden, hidden), (grad_weight, weight), (grad_bias, bias)]
        return (*(None if grad is None else grad.to(of.dtype) for grad, of in grads), None, None)


def _to_operand(
    pull: Float[Tensor, "vocab rows"], dtype: torch.dtype
) -> tuple[Float[Tensor, "vocab rows"], Float[Tensor, "rows 1"]]:
    """The pull in the dtype of the head, and what each row was divided by: half precision ends at 6e-8."""
    if pull.dtype == dtype:
        return pull, pull.new_ones(pull.shape[1], 1)
    scale = pull.amax(0).maximum(-pull.amin(0)).clamp_(min=torch.finfo(pull.dtype).tiny)
    return pull.div_(scale).to(dtype), scale[:, None]
