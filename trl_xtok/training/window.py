"""Rollouts of one optimizer step -> the tensors that the objective needs.

All completion tokens of a micro-batch lie in one dimension, row after row, and its chunks are numbered through. What
is not trained on is counted by reason here. By the tokens that are left the loss is normalized, also by those of which
the teacher then turns out to say nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..alignment.aligner import Alignment
from ..objectives import VocabJSD, sum_by_chunk
from .scoring import pack, to_device
from .selection import Selection
from .vocab_comparison import ChunkStarts


# Kinds of steps that are reported apart.
Mode = Literal["train", "off_policy", "eval"]
# What the student itself made unscorable; the rest of the reasons lie with the teacher or the length limit.
CHARGED_REASONS = frozenset({"invalid_utf8", "unknown_id"})


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion, aligned.

    Attributes:
        prompt_ids: The prompt in student tokens.
        teacher_prompt_ids: The prompt in teacher tokens.
        completion_ids: The completion exactly as sampled.
        alignment: The completion in the teacher's tokens, and the chunks.
        canonical: The completion against the student's own tokenization of the same text.
        blank_chunks: Chunks of nothing but white space.
        stopped: Whether the last token is a stop token; else the length limit cut the completion off.
        teacher: Number of the teacher that scores it.
    """

    prompt_ids: list[int]
    teacher_prompt_ids: list[int]
    completion_ids: list[int]
    alignment: Alignment
    canonical: Alignment
    blank_chunks: frozenset[int]
    stopped: bool
    teacher: int = 0

    @property
    def is_canonical(self) -> bool:
        """Whether the student's tokenizer would have cut the text as the student did."""
        return self.canonical.teacher_ids == self.completion_ids

    def leaves_canonical(self) -> list[bool]:
        """Whether each token is the first of a stretch in which the student cuts the text in its own way."""
        regions = self.canonical.student_chunks
        paths: dict[int, list[int]] = {}
        for region, token_id in zip(self.canonical.teacher_chunks, self.canonical.teacher_ids, strict=True):
            paths.setdefault(region, []).append(token_id)
        own = [
            region >= 0 and paths.get(region) != [token_id]
            for region, token_id in zip(regions, self.completion_ids, strict=True)
        ]
        return [differs and not before for differs, before in zip(own, [False, *own], strict=False)]


@dataclass(frozen=True, slots=True)
class CanonicalPaths:
    """The student's own canonical tokenizations of the rollouts that left theirs, scored unit by unit.

    Attributes:
        units: The unit of each completion token of the micro-batch, else -1.
        differ: Whether the canonical path through a unit is another one than the sampled.
        logps: Log-prob that the student gives to the canonical path through each unit, in nats.
    """

    units: Int[Tensor, " tokens"]
    differ: Bool[Tensor, " units"]
    logps: Float[Tensor, " units"]


class Means(NamedTuple):
    """What depends on the advantages of a whole optimizer step.

    Attributes:
        charge: Advantage of the charged tokens.
        baseline: Subtracted from the advantages of scored and charged tokens.
    """

    charge: Float[Tensor, ""]
    baseline: Float[Tensor, ""]


class Cuts(NamedTuple):
    """Cuts between chunks that are trained on, behind one and the same teacher token.

    Attributes:
        undoing: Student tokens that, written next, can undo such a cut.
        chunks: The chunk that begins at each cut.
        tokens: Its first token among the completion tokens of the micro-batch.
    """

    undoing: Int[Tensor, " ids"]
    chunks: Int[Tensor, " cuts"]
    tokens: Int[Tensor, " cuts"]


class StudentScores(NamedTuple):
    """What the student says of a micro-batch, with gradient where the loss needs it.

    Attributes:
        logps: Log-prob of each completion token, in nats.
        compared: Its next-token distributions against the teacher's, at `MicroBatch.starts`; `None` if there are none.
            Left out within chunks that `joins` joins.
        baselines: What the advantage of each token is expected to be, 0 where that is not known, without gradient;
            `None` if that is not asked for.
        joins: Which chunks go on with the one before them; `None` if none may.
    """

    logps: Float[Tensor, " tokens"]
    compared: VocabJSD | None = None
    baselines: Float[Tensor, " tokens"] | None = None
    joins: Bool[Tensor, " chunks"] | None = None


@dataclass(slots=True)
class MicroBatch:
    """Aligned rollouts that go through the student together, once `add_scores` was called.

    Attributes:
        packed: What the student reads; see `pack`.
        chunks: The chunk of each completion token that is trained on, else -1.
        teacher_chunks: The chunk of each teacher token, trained on or not, else -1.
        teacher_logps: `L_T` of each chunk, in nats; NaN before it is known.
        chunk_bytes: Bytes of text in each chunk; 0 for end chunks.
        charged: Completion tokens that are charged instead of scored.
        leaving: Completion tokens with which the student leaves its own tokenization of the text.
        drop_reasons: Why each completion token is in no chunk that is trained on, `None` if it is in one.
        selection: What that is.
        teacher_token_logps: Log-prob of each teacher token, in nats, not finite where the teacher could not say;
            `None` before they are known.
        ahead: What the teacher was asked before it is needed, as it computes it; `None` if nothing.
        starts: Where next-token distributions are compared; `None` if the objective compares none.
        cuts: Cuts between chunks that something could have undone; empty if chunks are not joined.
        canonical: What `segmentation="text"` needs; `None` if all rollouts are canonical.
        weights: Of the loss of each completion token; `None` if all weigh the same.
        means: What the whole optimizer step decides; `None` if the micro-batch is all of it.
        rollouts: What the micro-batch was made of.
        mode: The kind of step that it belongs to.
    """

    packed: dict[str, Tensor]
    chunks: Int[Tensor, " tokens"]
    teacher_chunks: Sequence[int]
    teacher_logps: Float[Tensor, " chunks"]
    chunk_bytes: Int[Tensor, " chunks"]
    charged: Bool[Tensor, " tokens"]
    leaving: Bool[Tensor, " tokens"]
    drop_reasons: Sequence[str | None]
    selection: Selection
    teacher_token_logps: Float[Tensor, " teacher_tokens"] | None = None
    ahead: tuple[Tensor, Tensor | None] | None = None
    starts: ChunkStarts | None = None
    cuts: Sequence[Cuts] = ()
    canonical: CanonicalPaths | None = None
    weights: Float[Tensor, " tokens"] | None = None
    means: Means | None = None
    rollouts: Sequence[Rollout] = field(default=())
    mode: Mode = "train"

    def counts(self) -> Int[Tensor, "4"]:
        """Numbers of scored, charged, trained and all completion tokens."""
        scored, charged = (self.chunks >= 0).sum(), self.charged.sum()
        every = torch.full_like(scored, len(self.chunks))
        return torch.stack([scored, charged, every if self.selection.imitate else scored + charged, every])

    @property
    def dropped(self) -> Counter[str]:
        """Reason -> number of student tokens that are in no chunk that is trained on."""
        return Counter(reason for reason in self.drop_reasons if reason is not None)

    @property
    def is_scored(self) -> bool:
        """Whether it has the teacher's scores."""
        return self.teacher_token_logps is not None

    @property
    def num_chunks(self) -> int:
        """Number of chunks, trained on or not."""
        return len(self.teacher_logps)


def assemble(
    rollouts: Sequence[Rollout], readable: Sequence[int], selection: Selection, device: torch.device
) -> MicroBatch:
    """Put aligned rollouts together, for the teacher to score.

    Args:
        rollouts: The completions of the micro-batch.
        readable: How many tokens of each `alignment.teacher_ids`, from the first, the teacher can read.
        selection: What is trained on.
        device: Where the student is.
    """
    chunks, teacher_chunks, reasons, chunk_bytes, leaving = [], [], [], [], []
    unfinished, blank, unread = set[int](), set[int](), set[int]()
    for rollout, end in zip(rollouts, readable, strict=True):
        alignment, offset = rollout.alignment, len(chunk_bytes)
        chunks += (c + offset if c >= 0 else -1 for c in alignment.student_chunks)
        teacher_chunks += (c + offset if c >= 0 else -1 for c in alignment.teacher_chunks)
        unread |= {c + offset for c in alignment.teacher_chunks[end:] if c >= 0}
        reasons += alignment.drop_reasons
        chunk_bytes += _bytes_by_chunk(alignment)
        blank |= {chunk + offset for chunk in rollout.blank_chunks}
        leaving += rollout.leaves_canonical()
        if alignment.num_chunks and not rollout.stopped and not selection.keep_unfinished:
            unfinished.add(len(chunk_bytes) - 1)
    sizes = _longer_sides(chunks, teacher_chunks)
    why = [
        "unfinished" if c in unfinished else "teacher" if c in unread else selection.drop_reason(sizes[c], c in blank)
        for c in range(len(chunk_bytes))
    ]
    reasons = [why[chunk] if chunk >= 0 else reason for chunk, reason in zip(chunks, reasons, strict=True)]
    chunks = [-1 if reason else chunk for chunk, reason in zip(chunks, reasons, strict=True)]
    charged = [selection.charge_dropped and reason in CHARGED_REASONS for reason in reasons]
    return MicroBatch(
        packed=pack([r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts], device),
        chunks=to_device(torch.tensor(chunks, dtype=torch.long), device),
        teacher_chunks=teacher_chunks,
        teacher_logps=torch.full((len(chunk_bytes),), torch.nan, device=device),
        chunk_bytes=to_device(torch.tensor(chunk_bytes, dtype=torch.long), device),
        charged=to_device(torch.tensor(charged, dtype=torch.bool), device),
        leaving=to_device(torch.tensor(leaving, dtype=torch.bool), device),
        drop_reasons=reasons,
        selection=selection,
        rollouts=rollouts,
    )


def add_scores(batch: MicroBatch, teacher_token_logps: Float[Tensor, " teacher_tokens"]) -> None:
    """Give a micro-batch what the teacher said, and leave out of it the chunks that it said nothing of.

    Args:
        batch: The micro-batch.
        teacher_token_logps: Log-prob of each token of `alignment.teacher_ids`, rollout after rollout; NaN where the
            teacher could not say.
    """
    places, device = torch.tensor(batch.teacher_chunks, device=teacher_token_logps.device), batch.chunks.device
    logps = sum_by_chunk(teacher_token_logps, places, batch.num_chunks)
    batch.teacher_token_logps, batch.teacher_logps = teacher_token_logps, logps.nan_to_num(0.0, 0.0, 0.0).to(device)
    unscored = {chunk for chunk, scored in enumerate(logps.isfinite().tolist()) if not scored}
    chunks = batch.chunks.tolist() if unscored else []
    if unscored & {*chunks}:
        pairs = zip(chunks, batch.drop_reasons, strict=True)
        batch.drop_reasons = ["teacher" if chunk in unscored else reason for chunk, reason in pairs]
        kept = [-1 if chunk in unscored else chunk for chunk in chunks]
        batch.chunks = to_device(torch.tensor(kept, dtype=torch.long), device)


def _longer_sides(chunks: Sequence[int], teacher_chunks: Sequence[int]) -> Counter[int]:
    """The larger of the two counts of tokens of each chunk."""
    return Counter(chunks) | Counter(teacher_chunks)


def _bytes_by_chunk(alignment: Alignment) -> list[int]:
    sizes = [0] * alignment.num_chunks
    for chunk, size in zip(alignment.student_chunks, alignment.student_bytes, strict=True):
        if chunk >= 0:
            sizes[chunk] += size
    return sizes
