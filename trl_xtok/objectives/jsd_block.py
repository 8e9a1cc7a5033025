"""The comparison of two models' next-token distributions at a block of positions, in tiles of events.

Neighbouring positions lie next to each other in memory, as an `EventMap` needs them. Scores and log-probs are made in
place; what else the arithmetic needs exists for a few events at a time, which a processor's cache can hold.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .event_map import EventMap, Normalizer
from .torch_logps import Plan, locate, slices, write_logits


# Scores of one side and events, for a block of positions.
BLOCK_BYTES = 50 * 2**20
# Scores of a few events for all positions of a block; the arithmetic goes over them several times.
TILE_BYTES = 3 * 2**17
# Where there is no such cache, and in small vocabularies, there are this many tiles of events.
TILES = 8
# Most tiles that a vocabulary is cut into, however few events it makes up; without and with such a cache.
MOST_TILES, MOST_CACHED_TILES = 64, 256
# How many tensors of a tile live at one time.
TILE_TENSORS = 4


class Buffers(NamedTuple):
    """Memory for a block of positions; new memory for each block would cost more than its use.

    Attributes:
        scores: Of one side's tokens at a time.
        events: The teacher's scores, then what pulls at the student.
        tiles: What else the arithmetic needs.
    """

    scores: Tensor
    events: Tensor
    tiles: Float[Tensor, "tensors tile"]

    def tiles_of(self, rows: int) -> Float[Tensor, "tensors tile_events rows"]:
        """Memory for so many positions of as many events as have room."""
        events = self.tiles.shape[1] // rows
        return self.tiles[:, : events * rows].view(TILE_TENSORS, events, rows)


class Pair(NamedTuple):
    """What is compared, and how.

    Attributes:
        student: How the student's logits are made.
        student_events: How its vocabulary makes up the events.
        teacher: The same for the teacher.
        teacher_events: The same for the teacher.
        teacher_hidden: The teacher's final hidden states, `[positions, teacher_hidden]`.
        teacher_weight: Its head, in the dtype of its products.
        teacher_bias: The bias of its head.
        beta: 0 forward KL, 1 reverse KL.
        sampled: An event per position whose log-ratio is asked for.
        block_size: As many logits as this number of positions has may be alive, for the larger vocabulary; `None` for
            `BLOCK_BYTES` of them.
    """

    student: Plan
    student_events: EventMap
    teacher: Plan
    teacher_events: EventMap
    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    beta: float
    sampled: Int[Tensor, "positions 1"] | None
    block_size: int | None

    @property
    def pull_factor(self) -> float:
        """What `compare_block` leaves out of the derivative."""
        return self.student.factor * (1 - self.beta if self.beta < 1 else 1)

    @property
    def num_events(self) -> int:
        """How many events there are."""
        return self.teacher_events.count(len(self.teacher_weight))

    @property
    def _has_cache(self) -> bool:
        return self.teacher_weight.device.type == "cpu"

    def rows_per_block(self, vocab_size: int) -> int:
        """How many positions are compared at a time, by how many numbers live for each of them."""
        largest = self._largest(vocab_size)
        room = BLOCK_BYTES // 4 if self.block_size is None else self.block_size * largest
        in_half = self.student.dtype != self.student.float_dtype
        own = vocab_size * (2 if self.student.softcap else 1) + vocab_size * in_half // 2
        others = len(self.teacher_weight) * (2 if self.teacher.softcap else 1)
        lasting = max(own, others) + self.num_events
        least, share = self._tile_limits(largest)
        # `EventMap.normalize_` keeps two numbers for each tile.
        rows = room // (lasting + TILE_TENSORS * share + 2 * -(-largest // share))
        if self._has_cache:
            # Tiles are no larger than that, however many rows there are.
            each = lasting + TILE_TENSORS * least + 2 * -(-largest // least)
            rows = max(rows, (room - TILE_TENSORS * TILE_BYTES // 4) // each)
        rows = max(1, rows)
        return rows - rows % 8 if rows > 8 else rows

    def buffers(self, student_head: Tensor) -> Buffers:
        """Memory for as many positions as are compared at a time."""
        rows = max(1, min(self.rows_per_block(len(student_head)), len(self.teacher_hidden)))
        least, share = self._tile_limits(self._largest(len(student_head)))
        lines = max(least, min(share, TILE_BYTES // (4 * rows))) if self._has_cache else share
        make = partial(student_head.new_empty, dtype=self.student.float_dtype)
        return Buffers(
            scores=make(rows * max(len(student_head), len(self.teacher_weight))),
            events=make(rows * self.num_events),
            tiles=make(TILE_TENSORS, rows * lines),
        )

    def _largest(self, vocab_size: int) -> int:
        return max(vocab_size, len(self.teacher_weight))

    def _tile_limits(self, largest: int) -> tuple[int, int]:
        """Fewest lines of a tile where there is a cache, and those of a tile where there is none."""
        share = max(-(-self.num_events // TILES), -(-largest // MOST_TILES))
        return min(share, -(-largest // MOST_CACHED_TILES)), share

    def blocks(self, vocab_size: int) -> Iterator[slice]:
        """The positions, as many as are compared at a time."""
        return slices(len(self.teacher_hidden), self.rows_per_block(vocab_size))


def compare_block(
    hidden: Float[Tensor, "rows hidden"],
    head: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"] | None,
    rows: slice,
    pair: Pair,
    buffers: Buffers,
    *,
    with_pull: bool,
    log_ratios: Float[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "vocab rows"] | None]:
    """Divergence of each row, and its derivative with respect to the student's `hidden @ head.T + bias`.

    The derivative lacks `pull_factor`. The log-ratios of the sampled events are written to `log_ratios`.
    """
    memory = buffers.tiles_of(len(hidden))
    events, teacher_normalizer = _gather_teacher(pair, rows, buffers, memory)
    scores, slope = _logits(buffers.scores, hidden, head, bias, pair.student, with_slope=with_pull)
    normalizer = pair.student_events.normalize_(scores, memory[0])
    sampled = None if log_ratios is None or pair.sampled is None else pair.sampled[rows]
    value, totals = torch.zeros_like(scores[0]), torch.zeros_like(scores[0])
    for part in slices(len(events), memory.shape[1]):
        target = events[part]
        own, student, teacher, mixture = memory[:, : len(target)]
        gathered = pair.student_events.gather(scores, part, out=own)
        pair.student_events.logps_(gathered, normalizer, out=student, probabilities=own)
        pair.teacher_events.logps_(target, teacher_normalizer, out=teacher, probabilities=target)
        if log_ratios is not None and sampled is not None:
            local, inside = locate(sampled, part)
            found = (teacher.T.gather(1, local) - student.T.gather(1, local)).squeeze(1)
            log_ratios.copy_(found.where(inside.squeeze(1), log_ratios))
        _add_jsd_(value, totals, _Events(own, student, target, teacher), pair, mixture)
    if not with_pull:
        return value, None
    pair.student_events.pull_(scores, normalizer, events, totals, memory)
    return value, scores if slope is None else scores.mul_(slope)


def _gather_teacher(
    pair: Pair, rows: slice, buffers: Buffers, memory: Float[Tensor, "tensors tile rows"]
) -> tuple[Float[Tensor, "events rows"], Normalizer]:
    """The teacher's scores of the events; the memory of the other scores is free again."""
    is_whole = pair.teacher_events.is_whole
    scores, _ = _logits(
        buffers.events if is_whole else buffers.scores,
        pair.teacher_hidden[rows],
        pair.teacher_weight,
        pair.teacher_bias,
        pair.teacher,
    )
    normalizer = pair.teacher_events.normalize_(scores, memory[0])
    if is_whole:
        return scores, normalizer
    events = _lines(buffers.events, pair.num_events, scores.shape[1])
    for part in slices(len(events), memory.shape[1]):
        pair.teacher_events.gather(scores, part, out=events[part])
    return events, normalizer


def _logits(
    buffer: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: Plan,
    *,
    with_slope: bool = False,
) -> tuple[Float[Tensor, "vocab rows"], Float[Tensor, "vocab rows"] | None]:
    logits = _lines(buffer, len(weight), len(hidden))
    slope = write_logits(logits.T, hidden.to(plan.dtype), weight, bias, plan, with_slope=with_slope)
    return logits, None if slope is None else slope.T


def _lines(buffer: Tensor, lines: int, rows: int) -> Float[Tensor, "lines rows"]:
    return buffer[: lines * rows].view(lines, rows)


class _Events(NamedTuple):
    """Both sides' probabilities and log-probs of some events."""

    own: Float[Tensor, "events rows"]
    student: Float[Tensor, "events rows"]
    target: Float[Tensor, "events rows"]
    teacher: Float[Tensor, "events rows"]


def _add_jsd_(
    value: Float[Tensor, " rows"],
    totals: Float[Tensor, " rows"],
    events: _Events,
    pair: Pair,
    memory: Float[Tensor, "events rows"],
) -> None:
    """Add what some events contribute to the generalised JSD and to what all pulls have in common.

    Their own pulls take the place of `target`, in the form that `EventMap.pull_` expects.
    """
    own, student, target, teacher = events
    beta, in_classes = pair.beta, pair.student_events.classes is not None
    tiny = torch.finfo(own.dtype).tiny
    if beta == 0:
        value += teacher.sub_(student).mul_(target).sum(0)
        if in_classes:
            # What the student's tokens make up so rarely, or never, pulls at nothing.
            target.masked_fill_(own <= tiny, 0)
        totals -= target.sum(0)
        target.neg_()
        if in_classes:
            target.div_(own)
        return
    if beta == 1:
        log_ratio = torch.sub(student, teacher, out=target)
    else:
        mixture = torch.lerp(own, target, beta, out=memory).clamp_(min=tiny).log_()
        value += teacher.sub_(mixture).mul_(target).sum(0).mul_(beta)
        log_ratio = torch.sub(student, mixture, out=target)
    # The pull of a class stays the log-ratio; that of a token takes its place.
    total = torch.mul(own, log_ratio, out=own if in_classes else target).sum(0)
    totals += total
    value += total if beta == 1 else total * (1 - beta)
