"""Next-token distributions of two vocabularies, compared where a chunk begins.

There both models stand at the same byte of the same text. This module knows which tokens of the two sides make up one
event, and where in a micro-batch to compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..alignment.aligner import TokenizerAligner
from ..errors import TokenizerError
from ..objectives import EventMap, LMHead, VocabJSD, liger_jsd, use_liger_jsd, vocab_jsd
from .config import CrossTokenizerGKDConfig, ObjectiveName


@dataclass(frozen=True, slots=True)
class ChunkStarts:
    """Where both models are compared.

    Attributes:
        tokens: Place of each such student token among the completion tokens of the micro-batch.
        chunks: The chunk that begins there.
        events: The event that the first tokens of both sides belong to, -1 if it is not the same one.
        one_to_one: Whether the chunk is one token on either side.
        teacher_states: Hidden state with which the teacher predicts its first token of the chunk.
        one_to_one_only: Whether other chunks are not compared.
    """

    tokens: Int[Tensor, " starts"]
    chunks: Int[Tensor, " starts"]
    events: Int[Tensor, " starts"]
    one_to_one: Bool[Tensor, " starts"]
    teacher_states: Float[Tensor, "starts teacher_hidden"]
    one_to_one_only: bool = False

    def without(self, left_out: Bool[Tensor, " starts"], longer: Bool[Tensor, " starts"]) -> "ChunkStarts":
        """Fewer starts.

        Args:
            left_out: Where no chunk begins any more.
            longer: Starts of chunks that have got more tokens.
        """
        kept = ~(left_out | longer) if self.one_to_one_only else ~left_out
        return ChunkStarts(
            self.tokens[kept],
            self.chunks[kept],
            self.events[kept],
            (self.one_to_one & ~longer)[kept],
            self.teacher_states[kept],
            self.one_to_one_only,
        )


class VocabComparison:
    """Compares next-token distributions over the events of an objective.

    Args:
        objective: `exact_jsd` (all tokens), `shared_vocab_jsd` and `hybrid` (tokens with equal bytes), `prefix_jsd`
            (classes of tokens that begin the same texts), or `chunk_rkl` (tokens with equal bytes, the reverse KL, for
            a baseline).
        aligner: Knows both vocabularies.
        student_rows: Number of logits of the student.
        teacher_head: Its weight on the student's device.
        args: `beta`, `scoring` and `loss_backend`.

    Attributes:
        one_to_one_only: Whether only chunks of one token on either side are compared.

    Raises:
        TokenizerError: If the two sides have no event in common.
    """

    def __init__(
        self,
        objective: ObjectiveName,
        aligner: TokenizerAligner,
        student_rows: int,
        teacher_head: LMHead,
        args: CrossTokenizerGKDConfig,
    ):
        self.one_to_one_only = objective in ("shared_vocab_jsd", "hybrid")
        self._teacher_head = teacher_head
        # Of the other objectives Liger computes the log-probs only.
        self._whole, self._backend = objective == "exact_jsd", args.loss_backend
        beta = 1.0 if objective == "chunk_rkl" else args.beta
        self._options = {"beta": beta, "temperature": args.scoring["temperature"], "block_size": args.block_size}
        device, rows = teacher_head.weight.device, (student_rows, len(teacher_head.weight))
        if objective == "exact_jsd":
            # A padded embedding has ids that mean nothing; where both are padded alike GKD counts them in.
            ids = torch.arange(min(rows))
            sides = (ids, ids)
        elif objective == "prefix_jsd":
            classes = aligner.prefix_classes()
            sides = torch.tensor(classes.student_classes), torch.tensor(classes.teacher_classes)
        else:
            shared = aligner.shared_tokens()
            sides = _numbered(shared.student_ids, shared.teacher_ids)
        self._events = _in_common(*(_fit(side, size) for side, size in zip(sides, rows, strict=True)))
        self._student_map, self._teacher_map = (_event_map(events, device) for events in self._events)

    def starts(
        self,
        student: tuple[Sequence[int], Sequence[int]],
        teacher: tuple[Sequence[int], Sequence[int]],
        teacher_states: Float[Tensor, "teacher_tokens teacher_hidden"],
        device: torch.device,
    ) -> ChunkStarts:
        """Where to compare the two models.

        Args:
            student: Token ids of the completions of a micro-batch, and the chunk of each that is trained on, else -1.
            teacher: The same in the teacher's tokens; chunks that are not trained on may be named.
            teacher_states: Hidden state that predicts each of the teacher's tokens.
            device: Where the student is.
        """
        ours, theirs = (_places(chunks) for _, chunks in (student, teacher))
        one_to_one = [len(places) == len(theirs[chunk]) == 1 for chunk, places in ours.items()]
        if self.one_to_one_only:
            ours = {chunk: places for (chunk, places), alone in zip(ours.items(), one_to_one, strict=True) if alone}
            one_to_one = [True] * len(ours)
        firsts = [places[0] for places in ours.values()], [theirs[chunk][0] for chunk in ours]
        # What is trained on was sampled and scored, so its ids are rows of the two heads.
        events, teacher_events = (
            numbers[torch.tensor([ids[place] for place in places], dtype=torch.long)]
            for numbers, (ids, _), places in zip(self._events, (student, teacher), firsts, strict=True)
        )
        return ChunkStarts(
            tokens=torch.tensor(firsts[0], dtype=torch.long, device=device),
            chunks=torch.tensor(list(ours), dtype=torch.long, device=device),
            events=events.where(events == teacher_events, -1).to(device),
            one_to_one=torch.tensor(one_to_one, dtype=torch.bool, device=device),
            teacher_states=teacher_states[torch.tensor(firsts[1], dtype=torch.long, device=teacher_states.device)].to(
                device
            ),
            one_to_one_only=self.one_to_one_only,
        )

    def __call__(self, states: Float[Tensor, "tokens student_hidden"], head: LMHead, starts: ChunkStarts) -> VocabJSD:
        """The divergence at each start, and the log-ratio of the event that was written there.

        Args:
            states: Hidden state with which the student predicts each completion token of the micro-batch.
            head: The student's head.
            starts: Where to compare.
        """
        if len(starts.tokens) and self._whole and self._uses_liger(states, head):
            options = self._options
            total = liger_jsd(states[starts.tokens], head, starts.teacher_states, self._teacher_head, **options)
            # It knows no more than the sum, and the loss reads no more.
            return VocabJSD((total / len(starts.tokens)).expand(len(starts.tokens)), None)
        return vocab_jsd(
            states[starts.tokens],
            head,
            starts.teacher_states,
            self._teacher_head,
            student_events=self._student_map,
            teacher_events=self._teacher_map,
            sampled=starts.events.clamp(min=0),
            **self._options,
        )

    def _uses_liger(self, states: Tensor, head: LMHead) -> bool:
        sides = (head, self._student_map), (self._teacher_head, self._teacher_map)
        return use_liger_jsd(self._backend, states, *sides)


def _places(chunks: Sequence[int]) -> dict[int, list[int]]:
    """Chunk -> the places of its tokens."""
    places: dict[int, list[int]] = {}
    for place, chunk in enumerate(chunks):
        if chunk >= 0:
            places.setdefault(chunk, []).append(place)
    return places


def _numbered(student_ids: Sequence[int], teacher_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Each pair as an event; several student tokens may be with one teacher token."""
    student, teacher = (torch.full((max(ids, default=-1) + 1,), -1) for ids in (student_ids, teacher_ids))
    events = torch.tensor(teacher_ids, dtype=torch.long)
    student[torch.tensor(student_ids, dtype=torch.long)] = events
    teacher[events] = events
    return student, teacher


def _fit(events: Int[Tensor, " ids"], rows: int) -> Int[Tensor, " {rows}"]:
    """The event of each row of a head, which may have more or fewer rows than its tokenizer has tokens."""
    fitted = events.new_full((rows,), -1)
    fitted[: min(rows, len(events))] = events[:rows]
    return fitted


def _in_common(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Number the events that have tokens on both sides from 0, and leave out the others."""
    kept = student[(student >= 0) & torch.isin(student, teacher)].unique()
    if not len(kept):
        raise TokenizerError(
            "The two vocabularies have no token in common, so their next-token distributions cannot be compared. Use "
            "`objective='chunk_rkl'` without `advantage_baseline='position'`, which needs none."
        )
    found = (torch.searchsorted(kept, side).clamp(max=len(kept) - 1) for side in (student, teacher))
    student_events, teacher_events = (
        torch.where(kept[place] == side, place, -1) for place, side in zip(found, (student, teacher), strict=True)
    )
    return student_events, teacher_events


def _event_map(events: Int[Tensor, " rows"], device: torch.device) -> EventMap:
    columns = events.argsort(stable=True)[int((events < 0).sum()) :]
    classes, num_events = events[columns], int(events.max()) + 1
    if len(columns) > num_events:
        return EventMap(columns.to(device), classes.to(device), num_events)
    # Sorted by event, so that both sides have the same order.
    return EventMap(None if torch.equal(columns, torch.arange(len(events))) else columns.to(device))
