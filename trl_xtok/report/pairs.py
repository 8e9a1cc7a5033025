"""What the student wrote first and what it wrote last, for the same prompt where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from .run import Row, Run, Table, kinds


_MOST_PAIRS = 6


@dataclass(frozen=True, slots=True)
class Written:
    """A completion at one step."""

    step: int
    row: Row


@dataclass(frozen=True, slots=True)
class Pair:
    """An early and a late completion.

    Attributes:
        kind: "" for completions of training, else what the names of the evaluation's metrics begin with.
        first: The early one.
        last: The late one; `None` if only one step was kept.
    """

    kind: str
    first: Written
    last: Written | None

    @property
    def same_prompt(self) -> bool:
        """Whether both answer one prompt."""
        return self.last is not None and self.first.row["prompt"] == self.last.row["prompt"]


def completion_pairs(run: Run) -> list[Pair]:
    """Completions of an evaluation or, without one, of training, whose prompts came up twice; else any."""
    by_kind = [(kind, _same_prompts(kind, tables)) for kind, tables in kinds(run.completions)]
    for _, pairs in by_kind:
        if pairs:
            return pairs
    for kind, tables in kinds(run.completions):
        if len(tables) > 1:
            rows = zip(tables[0].rows, tables[-1].rows, strict=False)
            return [
                Pair(kind, Written(tables[0].step, first), Written(tables[-1].step, last)) for first, last in rows
            ][:_MOST_PAIRS]
        return [Pair(kind, Written(tables[0].step, row), None) for row in tables[0].rows[:_MOST_PAIRS]]
    return []


def _same_prompts(kind: str, tables: Sequence[Table]) -> list[Pair]:
    """The first and the last completion of each prompt that was answered at two steps, the farthest apart first."""
    answers: dict[str, list[Written]] = {}
    for table in tables:
        for row in table.rows:
            written = answers.setdefault(row["prompt"], [])
            # A prompt may be sampled several times at one step.
            if not written or written[-1].step != table.step:
                written.append(Written(table.step, row))
    pairs = [Pair(kind, written[0], written[-1]) for written in answers.values() if len(written) > 1]
    pairs.sort(key=lambda pair: pair.first.step - pair.last.step if pair.last else 0)
    return pairs[:_MOST_PAIRS]
