"""Reads what a run left in its folder: what it logged, the completions it kept, and a few of them token by token."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ReportError


HISTORY = "run_history.jsonl"
STATE = "trainer_state.json"
# Of thousands of logs the first and the last are read.
_ENDS = 40
_COMPLETIONS = re.compile(r"(?P<kind>.*?)_?(?P<what>completions|chunks)_(?P<step>\d+)\.parquet")

Entry = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """Completions that were kept at one step.

    Attributes:
        kind: "" for those of training, else what the names of the evaluation's metrics begin with.
        step: The optimizer step.
        rows: One per completion.
    """

    kind: str
    step: int
    rows: Sequence[Row]


@dataclass(slots=True)
class Run:
    """What a run left.

    Attributes:
        name: Of its folder.
        start: Models, objective, settings and versions; empty for a run that left only checkpoints.
        entries: What was logged, in the order of the steps. What a resumed run trained again is there once.
        completions: Completions as text, the earliest and the latest steps.
        chunks: Completions token by token, the same.
        notes: What could not be read.
    """

    name: str
    start: Mapping[str, Any] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    completions: list[Table] = field(default_factory=list)
    chunks: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def last_step(self) -> int:
        """The last step that something was logged at."""
        return max((entry["step"] for entry in self.entries), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        return any("train_runtime" in entry for entry in self.entries)


def read_run(folder: Path) -> Run:
    """Everything that a report shows of a run.

    Args:
        folder: The run's `output_dir`, or one of its checkpoints.

    Raises:
        ReportError: If there is no such folder, or nothing in it to show.
    """
    if not folder.is_dir():
        raise ReportError(f"There is no folder {str(folder)!r}. Give the `output_dir` of a run.")
    run = Run(folder.resolve().name)
    if (folder / HISTORY).is_file():
        _read_history(folder / HISTORY, run)
    else:
        _read_state(folder, run)
    files = sorted(folder.glob("completions/*.parquet"))
    known = run.last_step if run.entries else None
    run.completions = _read_tables(files, "completions", known, run.notes)
    run.chunks = _read_tables(files, "chunks", known, run.notes)
    if not (run.entries or run.completions or run.chunks):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ReportError(
            f"{str(folder)!r} has nothing that a run logged: neither {HISTORY}, nor a checkpoint with {STATE}, nor "
            f"completions/*.parquet with rows. In it: {found}. Give the `output_dir` of a run that has logged once."
            + "".join(f" {note}" for note in run.notes)
        )
    return run


def _read_history(path: Path, run: Run) -> None:
    """Put the entries of all trainings that went on from one another together."""
    unread = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            # A run that is killed may leave half a line.
            unread += 1
            continue
        if not isinstance(entry, dict):
            unread += 1
        elif isinstance(start := entry.get("start"), dict):
            step = start.get("step", 0)
            run.start = start
            # From its first step on it is another run, from a later one the same that goes on.
            kept = [old for old in run.entries if step and old["step"] <= step]
            run.entries = [old for old in kept if "train_runtime" not in old]
        else:
            run.entries += _checked([entry])
    run.entries.sort(key=lambda entry: entry["step"])
    if unread:
        run.notes.append(f"{unread} lines of {path.name} are no entries; a killed run may leave half a line.")


def _read_state(folder: Path, run: Run) -> None:
    """Read the log of the latest checkpoint."""
    logs: list[tuple[int, list[Entry]]] = []
    for path in (folder / STATE, *folder.glob(f"checkpoint-*/{STATE}")):
        if not path.is_file():
            continue
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            logs.append((state["global_step"], _checked(state["log_history"])))
        except (ValueError, KeyError, TypeError) as error:
            run.notes.append(f"{path.relative_to(folder)} could not be read ({error}).")
    if logs:
        run.entries = sorted(max(logs, key=lambda log: log[0])[1], key=lambda entry: entry["step"])


def _checked(entries: Sequence[Any]) -> list[Entry]:
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("step"), int)]


def _read_tables(files: Sequence[Path], what: str, last_step: int | None, notes: list[str]) -> list[Table]:
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in files:
        name = _COMPLETIONS.fullmatch(path.name)
        # A longer run in the same folder may have left files before this one.
        if name is not None and name["what"] == what and (last_step is None or int(name["step"]) <= last_step):
            found.setdefault(name["kind"], []).append((int(name["step"]), path))
    tables = []
    for kind, steps in sorted(found.items()):
        steps.sort()
        ends = steps if len(steps) <= 2 * _ENDS else [*steps[:_ENDS], *steps[-_ENDS:]]
        for step, path in ends:
            try:
                rows = pq.read_table(path).to_pylist()
            except (pa.ArrowException, OSError) as error:
                notes.append(f"{path.name} could not be read ({str(error).splitlines()[0]}).")
                continue
            if rows:
                tables.append(Table(kind, step, rows))
    return tables


def kinds(tables: Sequence[Table]) -> Iterator[tuple[str, list[Table]]]:
    """The tables of each kind in the order of their steps, those of evaluations first."""
    for kind in sorted({table.kind for table in tables}, key=lambda kind: (kind == "", kind)):
        yield kind, [table for table in tables if table.kind == kind]
