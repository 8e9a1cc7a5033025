"""Folders of runs, written by hand: what a trainer would have left, and what spoils it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


# What a model may write to break out of a page, or to make it unreadable.
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=https://example.org/x onerror=alert(1)> {{ 7 * 7 }} "
    "<!-- ]]> \u202egnitirw\u202c \x00\x07\x1b[31m "
    + "w"
    * 600
    + " \U0001f469\u200d\U0001f680 \u0645\u0631\u062d\u0628\u0627 "
    "\"quoted\" 'text' &amp; \ttab\n\nlines"
)
START = {
    "step": 0,
    "max_steps": 20,
    "student": {"name": "student", "architecture": "llama", "parameters": 135_000_000, "trained": 4_900_000},
    "teacher": {"name": "org/teacher", "architecture": "gemma3_text", "parameters": 268_000_000, "trained": 0},
    "objective": "chunk_rkl",
    "settings": {"learning_rate": 0.003, "lmbda": 1.0, "advantage_clip": None},
    "versions": {"trl-xtok": "0.1.0", "trl": "1.16.0"},
    "device": "cpu",
    "processes": 1,
}


def entry(step: int, **changes: Any) -> dict[str, Any]:
    """What a training step logs."""
    return {
        "step": step,
        "epoch": step / 10,
        "loss": 1.5 / (step + 1),
        "grad_norm": 0.5,
        "learning_rate": 1e-5,
        "xtok/reverse_kl_per_byte": 0.6 - 0.01 * step,
        "xtok/coverage": 0.95,
        "xtok/dropped_unfinished": 0.04,
        "xtok/dropped_invalid_utf8": 0.01,
        "xtok/dropped_teacher": 0.0,
        "xtok/noncanonical_ratio": 0.1 + 0.001 * step,
        "xtok/stop_rate": 0.5,
        "completions/mean_length": 20.0,
        "completions/min_length": 4.0,
        "completions/max_length": 32.0,
        **{f"time/{phase}": 0.5 for phase in ("rollout", "align", "teacher", "student")},
        **changes,
    }


def evaluation(step: int, prefix: str = "eval_", **changes: Any) -> dict[str, Any]:
    """What an evaluation logs."""
    of_training = ("step", "epoch", "grad_norm", "learning_rate")
    found = {f"{prefix}{name}": value for name, value in entry(step).items() if name not in of_training}
    own = {f"{prefix}{name}": value for name, value in {"runtime": 1.0, **changes}.items()}
    return {"step": step, **found, **own}


def write_history(folder: Path, entries: Sequence[Mapping[str, Any]], start: Mapping[str, Any] = START) -> Path:
    """Add a training to the history of a folder."""
    with (folder / "run_history.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in ({"start": start}, *entries))
    return folder


def write_completions(folder: Path, step: int, texts: Mapping[str, str], prefix: str = "") -> None:
    """Keep a completion for each prompt."""
    rows = [
        {
            "step": step,
            "prompt": prompt,
            "completion": text,
            "on_policy": True,
            "reverse_kl_per_byte": 0.5,
            "coverage": math.nan,
        }
        for prompt, text in texts.items()
    ]
    _write(folder, f"{prefix}completions_{step:05d}.parquet", rows)


def chunk_row(prompt: str = "Hi", **changes: Any) -> dict[str, Any]:
    """` Hello` in two student tokens and one of the teacher, a half character, a space mark, a line end, an end."""
    row = {
        "prompt": prompt,
        "completion": " Hello\n",
        "student_ids": [10, 11, 12, 13, 14, 0],
        "student_tokens": [b" Hel", b"lo", b"\xc3", b" a\n", b"</script>", b"<|im_end|>"],
        "student_logps": [-1.0, -0.5, -4.0, -0.2, -3.0, -0.1],
        "student_chunks": [0, 0, -1, 1, 2, 3],
        "advantages": [1.2, 0.6, -0.5, -0.1, -2.5, None],
        "drop_reasons": [None, None, "invalid_utf8", None, None, "unfinished"],
        "leaves_canonical": [True, False, False, False, False, False],
        "teacher_ids": [20, 21, 22, 23, 1],
        "teacher_tokens": [b" Hello", b" a", b"\n", b"</script>", b"<end_of_turn>"],
        "teacher_logps": [-0.3, -0.2, -0.1, -5.5, math.nan],
        "teacher_chunks": [0, 1, 1, 2, 3],
    }
    return {**row, **changes}


def write_chunks(folder: Path, step: int, rows: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
    """Keep completions token by token."""
    _write(folder, f"{prefix}chunks_{step:05d}.parquet", [{"step": step, **row} for row in rows])


def whole_run(folder: Path, steps: int = 20) -> Path:
    """A finished run with evaluations, completions and chunks, some of them hostile."""
    logs = [evaluation(0, accuracy=0.25), *(entry(step) for step in range(1, steps + 1))]
    write_history(folder, [*logs, evaluation(steps, accuracy=0.5), {"step": steps, "train_runtime": 61.0}])
    for step in (0, steps):
        write_completions(folder, step, {"Hi": f" Hello at {step}", HOSTILE: HOSTILE}, "eval_")
        write_chunks(folder, step, [chunk_row(), hostile_row()], "eval_")
    write_completions(folder, 10, {"other": " more"})
    return folder


def hostile_row() -> dict[str, Any]:
    """A completion whose tokens are hostile, and one of which is unknown."""
    tokens = [HOSTILE.encode(), "\u202e".encode(), b"\x00", "\u0301a".encode(), b"'\"><b>", None]
    size = len(tokens)
    return chunk_row(
        HOSTILE,
        student_ids=[*range(size)],
        student_tokens=tokens,
        student_logps=[-0.5] * size,
        student_chunks=[*range(size - 1), -1],
        advantages=[0.3, -0.3, 0.0, 2.0, -2.0, None],
        drop_reasons=[None] * (size - 1) + ["unknown_id"],
        leaves_canonical=[False] * size,
        teacher_ids=[*range(size - 1)],
        teacher_tokens=tokens[:-1],
        teacher_logps=[-0.7] * (size - 1),
        teacher_chunks=[*range(size - 1)],
    )


def _write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / "completions").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), folder / "completions" / name)
