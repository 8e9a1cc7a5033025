"""Completions token by token -> what the picture of credit shows: chunks, their sums, and a colour for each token."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .run import Run, kinds


# Tokens of one side; a longer completion is shown up to there.
MOST_TOKENS = 400
# Pictures of one kind of steps.
_MOST_ROWS = 3
# Shares of the largest usual value at which the colour changes.
_EDGES = (0.05, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        spelled: Its bytes; `None` if its id stands for no token.
        token_id: Its id.
        logp: Its log-prob in nats; `None` if the model could not say.
        advantage: `None` for a token of the teacher, and for one that has none.
        dropped: Why it is not trained on, `None` if it is.
        leaves: Whether the student leaves its own tokenization of the text with it.
    """

    spelled: bytes | None
    token_id: int
    logp: float | None
    advantage: float | None = None
    dropped: str | None = None
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk, or a stretch of tokens that are in none.

    Attributes:
        number: From 0 in text order, -1 for a stretch without chunk.
        student: Its student tokens.
        teacher: Its teacher tokens.
    """

    number: int
    student: Sequence[Token]
    teacher: Sequence[Token]

    @property
    def student_logp(self) -> float | None:
        """`L_S`."""
        return _sum(self.student)

    @property
    def teacher_logp(self) -> float | None:
        """`L_T`."""
        return _sum(self.teacher)

    @property
    def difference(self) -> float | None:
        """`L_T - L_S`: above 0 where the teacher finds the text likelier than the student does."""
        if self.number < 0 or self.student_logp is None or self.teacher_logp is None:
            return None
        return self.teacher_logp - self.student_logp


@dataclass(frozen=True, slots=True)
class Credited:
    """A completion by chunks.

    Attributes:
        kind: "" for one of training, else what the names of the evaluation's metrics begin with.
        step: The optimizer step.
        prompt: What it answers.
        chunks: In text order.
        left_out: Student tokens that are not shown.
    """

    kind: str
    step: int
    prompt: str
    chunks: Sequence[Chunk]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """Values -> steps of a diverging scale of colours, from -4 to 4.

    Attributes:
        limit: A value that is large among those shown.
    """

    limit: float

    def level(self, value: float) -> int:
        """Its step; 0 near zero."""
        size = sum(abs(value) > edge * self.limit for edge in _EDGES)
        return size if value > 0 else -size


def credited_completions(run: Run) -> list[Credited]:
    """The completions to draw: of an evaluation first and last for the same prompts, else of training."""
    found = []
    for kind, tables in kinds(run.chunks):
        for table in (tables[0], tables[-1]) if len(tables) > 1 else tables:
            found += [credited(kind, table.step, row) for row in table.rows[:_MOST_ROWS]]
    # Before and after of one prompt stand together.
    order = {key: place for place, key in enumerate(dict.fromkeys((one.kind, one.prompt) for one in found))}
    return sorted(found, key=lambda one: (order[one.kind, one.prompt], one.step))


def credited(kind: str, step: int, row: Mapping[str, Any]) -> Credited:
    """A row of a file of chunks, up to the chunk that would be too long."""
    student = [
        Token(spelled, token_id, _known(logp), _known(advantage), reason, bool(leaves))
        for spelled, token_id, logp, advantage, reason, leaves in zip(
            row["student_tokens"],
            row["student_ids"],
            row["student_logps"],
            row["advantages"],
            row["drop_reasons"],
            row["leaves_canonical"],
            strict=True,
        )
    ]
    teacher = [
        Token(spelled, token_id, _known(logp))
        for spelled, token_id, logp in zip(
            row["teacher_tokens"], row["teacher_ids"], row["teacher_logps"], strict=True
        )
    ]
    chunks, shown, left_out = [], 0, 0
    for chunk in _stretches(student, row["student_chunks"], teacher, row["teacher_chunks"]):
        shown += max(len(chunk.student), len(chunk.teacher))
        if shown <= MOST_TOKENS or not chunks:
            chunks.append(chunk)
        else:
            left_out += len(chunk.student)
    return Credited(kind, step, row["prompt"], chunks, left_out)


def scale_of(values: Sequence[float]) -> Scale:
    """A scale that one extreme value does not wash out: its end is the value that one in twenty exceeds."""
    sizes = sorted(abs(value) for value in values)
    limit = sizes[math.ceil(0.95 * len(sizes)) - 1] if sizes else 0.0
    return Scale(float(f"{max(limit, 1e-6):.2g}"))


def _stretches(
    student: Sequence[Token], student_chunks: Sequence[int], teacher: Sequence[Token], teacher_chunks: Sequence[int]
) -> list[Chunk]:
    """Chunks and what lies between them, in text order."""
    order = [number for number in dict.fromkeys(student_chunks) if number >= 0]
    columns: list[tuple[int, list[Token], list[Token]]] = [(-1, [], [])]
    for number in order:
        columns += [(number, [], []), (-1, [], [])]
    place = {number: 2 * index + 1 for index, number in enumerate(order)}
    for side, (tokens, numbers) in enumerate(((student, student_chunks), (teacher, teacher_chunks)), start=1):
        at = 0
        for token, number in zip(tokens, numbers, strict=True):
            # A token in no chunk stands behind the chunk before it.
            at = place.get(number, at - at % 2 + (at % 2) * 2)
            columns[at][side].append(token)
    return [Chunk(number, ours, theirs) for number, ours, theirs in columns if ours or theirs]


def _sum(tokens: Sequence[Token]) -> float | None:
    logps = [token.logp for token in tokens]
    return None if None in logps else sum(logp for logp in logps if logp is not None)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
