"""Completions token by token, in the tokens of both models: what the picture of a run is drawn from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..alignment.token_bytes import token_bytes
from .advantages import Credited
from .window import MicroBatch


# Completions per log or evaluation: a few show what happens, and thousands of logs stay small.
CHUNK_ROWS = 4
# Of the bytes of tokens; what splits a character is no text.
SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "prompt": pa.string(),
        "completion": pa.string(),
        "student_ids": pa.list_(pa.int64()),
        "student_tokens": pa.list_(pa.binary()),
        "student_logps": pa.list_(pa.float32()),
        "student_chunks": pa.list_(pa.int64()),
        "advantages": pa.list_(pa.float32()),
        "drop_reasons": pa.list_(pa.string()),
        "leaves_canonical": pa.list_(pa.bool_()),
        "teacher_ids": pa.list_(pa.int64()),
        "teacher_tokens": pa.list_(pa.binary()),
        "teacher_logps": pa.list_(pa.float32()),
        "teacher_chunks": pa.list_(pa.int64()),
    }
)


class Scored(NamedTuple):
    """A micro-batch that went through the student.

    Attributes:
        batch: What the models read and say of whole distributions may have been taken out.
        student_logps: Log-prob of each completion token, without gradient.
        credited: Its advantages; `None` if the objective credits nothing.
    """

    batch: MicroBatch
    student_logps: Float[Tensor, " tokens"]
    credited: Credited | None


def chunk_rows(
    scored: Scored, student: PreTrainedTokenizerBase, teachers: Sequence[PreTrainedTokenizerBase], limit: int
) -> list[dict[str, Any]]:
    """The first rollouts of a micro-batch by the columns of `SCHEMA`, without the step.

    What the student did not write has none: no advantage, and not always a score of the teacher.

    Args:
        scored: The micro-batch.
        student: Its tokenizer.
        teachers: The tokenizers of the teachers, by number.
        limit: Most rows.
    """
    batch, rollouts = scored.batch, scored.batch.rollouts
    if not batch.selection.on_policy or limit <= 0:
        return []
    spelled, teachers_spelled = token_bytes(student).spell_all, [token_bytes(each).spell_all for each in teachers]
    logps, teacher_logps = scored.student_logps.tolist(), batch.teacher_token_logps.tolist()
    advantages, leaving = _advantages(scored), batch.leaving.tolist()
    rows, start, teacher_start = [], 0, 0
    for rollout in rollouts[:limit]:
        alignment = rollout.alignment
        side = slice(start, start := start + len(rollout.completion_ids))
        teacher_side = slice(teacher_start, teacher_start := teacher_start + len(alignment.teacher_ids))
        rows.append(
            {
                "prompt": student.decode(rollout.prompt_ids, skip_special_tokens=True),
                "completion": student.decode(rollout.completion_ids, skip_special_tokens=True),
                "student_ids": rollout.completion_ids,
                "student_tokens": spelled(rollout.completion_ids),
                "student_logps": logps[side],
                "student_chunks": alignment.student_chunks,
                "advantages": advantages[side],
                "drop_reasons": batch.drop_reasons[side],
                "leaves_canonical": leaving[side],
                "teacher_ids": alignment.teacher_ids,
                "teacher_tokens": teachers_spelled[rollout.teacher](alignment.teacher_ids),
                "teacher_logps": teacher_logps[teacher_side],
                "teacher_chunks": alignment.teacher_chunks,
            }
        )
    return rows


def _advantages(scored: Scored) -> list[float | None]:
    """Those of tokens that the policy gradient reads."""
    batch, credited = scored.batch, scored.credited
    if credited is None:
        return [None] * len(scored.student_logps)
    # The guard gives an advantage to tokens that no score or charge does.
    given = (credited.scored | batch.charged | (credited.advantages != 0)).tolist()
    return [value if known else None for value, known in zip(credited.advantages.tolist(), given, strict=True)]


def write_chunks(rows: Sequence[dict[str, Any]], output_dir: str, step: int, prefix: str = "") -> None:
    """Keep completions by chunks in a file beside those with completions as text.

    Args:
        rows: From `chunk_rows`.
        output_dir: Folder of the run.
        step: The optimizer step.
        prefix: Of the name of the file, as of those of metrics.
    """
    folder = Path(output_dir, "completions")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([{"step": step, **row} for row in rows], schema=SCHEMA)
    pq.write_table(table, folder / f"{prefix.replace('/', '_')}chunks_{step:05d}.parquet", compression="zstd")
