"""Completions to read, each with figures of its own: on the console, in files, in experiment trackers."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .config import CrossTokenizerGKDConfig
from .objective import chunk_log_ratios
from .trl_compat import print_prompt_completions_sample
from .window import MicroBatch


# One completion, by the names of the columns.
Row = dict[str, Any]
_FIGURES = ["reverse_kl_per_byte", "coverage"]
# Modules with a `log` and a `Table`.
_TRACKERS = ("wandb", "trackio")


def completion_rows(
    batch: MicroBatch, student_logps: Float[Tensor, " tokens"], tokenizer: PreTrainedTokenizerBase
) -> list[Row]:
    """The prompts and completions of a micro-batch as text, and what a mean over all of them would hide.

    Args:
        batch: The micro-batch; what the models read and say of whole distributions may have been taken out.
        student_logps: Log-prob of each completion token.
        tokenizer: The student's.
    """
    rollouts = batch.rollouts
    ratios = chunk_log_ratios(student_logps, batch)
    covered = (batch.chunks >= 0).float().cpu().split([len(rollout.completion_ids) for rollout in rollouts])
    log_ratios, sizes = (
        values.where(ratios.texts, 0).cpu().split([rollout.alignment.num_chunks for rollout in rollouts])
        for values in (ratios.log_ratios, batch.chunk_bytes)
    )
    on_policy = batch.selection.on_policy
    return [
        {
            "prompt": tokenizer.decode(rollout.prompt_ids, skip_special_tokens=True),
            "completion": tokenizer.decode(rollout.completion_ids, skip_special_tokens=True),
            "on_policy": on_policy,
            # Of what the student did not write it is no estimate.
            "reverse_kl_per_byte": float(log_ratio.sum() / size.sum()) if on_policy and size.any() else None,
            "coverage": float(scored.mean()) if len(scored) else None,
        }
        for rollout, scored, log_ratio, size in zip(rollouts, covered, log_ratios, sizes, strict=True)
    ]


def write_completions(rows: Sequence[Row], args: CrossTokenizerGKDConfig, step: int, prefix: str = "") -> None:
    """Print completions and keep them in a file and with the trackers that `args.report_to` names, as TRL does.

    Args:
        rows: From `completion_rows`.
        args: The training arguments.
        step: The optimizer step.
        prefix: Of the names of file and table, as of those of metrics.
    """
    table = pd.DataFrame(rows)
    table[_FIGURES] = table[_FIGURES].astype(float)
    print_prompt_completions_sample(
        table["prompt"].tolist(),
        table["completion"].tolist(),
        table[_FIGURES].to_dict("list"),
        None,
        f"{step} ({prefix.removesuffix('_')})" if prefix else step,
        args.num_completions_to_print,
    )
    table.insert(0, "step", step)
    folder = Path(args.output_dir, "completions")
    folder.mkdir(parents=True, exist_ok=True)
    # The name of an evaluation dataset may be that of a repository.
    table.to_parquet(folder / f"{prefix.replace('/', '_')}completions_{step:05d}.parquet")
    if args.log_unique_prompts:
        table = table.drop_duplicates(subset=["prompt"])
    for name in _TRACKERS:
        if name in (args.report_to or ()):
            tracker = import_module(name)
            # Before training, and after it, there may be none, and then they fail.
            run = tracker.run if name == "wandb" else tracker.context_vars.current_run.get()
            if run is not None:
                tracker.log({f"{prefix}completions": tracker.Table(dataframe=table)})
