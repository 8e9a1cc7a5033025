"""What a run shows and leaves behind: metrics by kind of step, warnings, completions, and the user's own metrics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor
from transformers import EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_utils import denumpify_detensorize

from .advantages import Credited
from .chunk_log import CHUNK_ROWS, Scored, chunk_rows, write_chunks
from .completion_log import Row, completion_rows, write_completions
from .config import CrossTokenizerGKDConfig
from .data import decode_references
from .guards import CoverageGuard, EarlyWarnings
from .metrics import RunMetrics
from .window import MicroBatch, Mode


ComputeMetrics = Callable[[EvalPrediction], Mapping[str, Any]]


class RunLog:
    """Gathers what happens between two logs, or during an evaluation.

    Methods that return or write something are to be called on all ranks.

    Args:
        tokenizer: The student's.
        teacher_tokenizers: Those of the teachers.
        args: The training arguments.
        accelerator: Knows the other ranks.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizers: Sequence[PreTrainedTokenizerBase],
        args: CrossTokenizerGKDConfig,
        accelerator: Accelerator,
    ):
        self._tokenizer, self._teacher_tokenizers = tokenizer, teacher_tokenizers
        self._args, self._accelerator = args, accelerator
        self.metrics: dict[Mode, RunMetrics] = {mode: RunMetrics() for mode in get_args(Mode)}
        self._guards = {mode: CoverageGuard(args.min_coverage, mode) for mode in get_args(Mode)}
        self._warnings = EarlyWarnings()
        # Of the last optimizer step or evaluation batch.
        self._scored: list[Scored] = []
        self._counts: dict[Mode, list[Tensor]] = {mode: [] for mode in self.metrics}
        self._evaluated: list[Row] = []
        self._evaluated_chunks: list[Row] = []
        self._compute_metrics: ComputeMetrics | None = None
        self._keeps_evaluations = False

    def start_training(self) -> None:
        """Forget what an earlier call of `train` did not log, such as half a step."""
        for mode in ("train", "off_policy"):
            self.metrics[mode].start_over()

    def start_step(self, mode: Mode) -> None:
        """Take note that an optimizer step, or an evaluation batch, begins."""
        self.metrics[mode].add({"steps": 1.0})
        self._scored, self._counts[mode] = [], []

    def check_coverage(self, mode: Mode) -> None:
        """Stop the run if too little was trained on in the optimizer step whose last micro-batch was just added.

        Raises:
            CoverageError: If the coverage of steps of this kind stays below `min_coverage`.
        """
        scored, _, _, sampled = self._accelerator.reduce(torch.stack(self._counts[mode]).sum(0), "sum").tolist()
        self._guards[mode].check(scored / max(sampled, 1))

    def add(
        self,
        batch: MicroBatch,
        student_logps: Float[Tensor, " tokens"],
        credited: Credited | None,
        sums: Mapping[str, Tensor | float],
    ) -> None:
        """Take note of a micro-batch and of what came out of it."""
        self.metrics[batch.mode].add_rollouts(batch)
        self.metrics[batch.mode].add(sums)
        self._counts[batch.mode].append(batch.counts())
        if self._reads_completions(batch.mode):
            # Not kept alive until the next step: all that is large.
            kept = replace(batch, packed={}, starts=None, canonical=None)
            self._scored.append(Scored(kept, student_logps.detach(), credited))

    def collect(self) -> dict[str, float]:
        """The metrics of the optimizer steps since the last log."""
        logs = self.metrics["train"].collect(self._accelerator)
        self._warnings.check(self.metrics["train"].collected)
        if self._args.lmbda < 1:
            metrics = self.metrics["off_policy"].collect(self._accelerator)
            logs |= {f"off_policy/{name}": value for name, value in metrics.items()}
            # Each step counts once; the loss of a rank is its part of that of the step, times the number of ranks.
            both = {"on_policy_loss": self.metrics["train"], "off_policy_loss": self.metrics["off_policy"]}
            sums = {name: metrics.collected for name, metrics in both.items()}
            logs |= {name: of["loss"] / of["steps"] for name, of in sums.items() if of["steps"]}
        return logs | self._peak_memory() if logs else logs

    def write_completions(self, step: int) -> None:
        """Show and keep the completions of the last optimizer step, once."""
        if self._args.log_completions:
            chunks = self._chunk_rows(CHUNK_ROWS)
            self._write(gather_object(self._take_rows()), chunks, step)

    def start_evaluation(self, compute_metrics: ComputeMetrics | None) -> None:
        """Forget the evaluation before.

        Args:
            compute_metrics: The user's metrics of completions.
        """
        self.metrics["eval"], self._compute_metrics = RunMetrics(), compute_metrics
        self._evaluated, self._evaluated_chunks = [], []

    @contextmanager
    def keeping_evaluations(self) -> Iterator[None]:
        """Keep the completions of evaluations for `evaluated_texts`, whatever else asks for them."""
        self._keeps_evaluations = True
        try:
            yield
        finally:
            self._keeps_evaluations = False

    def evaluated_texts(self) -> EvalPrediction:
        """The completions of the last evaluation, the dataset's (`None` if it has none), and the prompts, as texts."""
        references = [row.get("reference") for row in self._evaluated]
        prediction = EvalPrediction(
            predictions=[row["completion"] for row in self._evaluated],
            label_ids=None if all(text is None for text in references) else references,
        )
        # Not given above, so that it still unpacks into two.
        prediction.inputs = [row["prompt"] for row in self._evaluated]
        return prediction

    def end_evaluation_batch(self, inputs: Mapping[str, Tensor]) -> None:
        """Gather the completions of a batch.

        Args:
            inputs: What [`PromptCollator`] returned.
        """
        if not self._reads_completions("eval"):
            return
        if self._args.log_completions:
            self._evaluated_chunks += self._chunk_rows(CHUNK_ROWS - len(self._evaluated_chunks))
        rows = self._take_rows()
        if "references" in inputs:
            # Rows that only fill up the batch are left out already.
            rows = [row | {"reference": text} for row, text in zip(rows, decode_references(inputs), strict=False)]
        self._evaluated += gather_object(rows)

    def end_evaluation(self, step: int, prefix: str) -> dict[str, float]:
        """Show and keep the completions of the evaluation; return its metrics.

        Args:
            step: The optimizer step.
            prefix: Of the names of metrics, without the underscore.
        """
        metrics = self._text_metrics() | self.metrics["eval"].collect(self._accelerator) | self._peak_memory()
        if self._args.log_completions:
            self._write(self._evaluated, self._evaluated_chunks, step, f"{prefix}_")
        # A name may have its prefix already, as for `Trainer`.
        return {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": metrics[name] for name in metrics}

    def _reads_completions(self, mode: Mode) -> bool:
        asked_for = self._keeps_evaluations or self._compute_metrics is not None
        return self._args.log_completions or (mode == "eval" and asked_for)

    def _text_metrics(self) -> dict[str, Any]:
        if self._compute_metrics is None:
            return {}
        return denumpify_detensorize(dict(self._compute_metrics(self.evaluated_texts())))

    def _take_rows(self) -> list[Row]:
        scored, self._scored = self._scored, []
        return [row for batch, logps, _ in scored for row in completion_rows(batch, logps, self._tokenizer)]

    def _chunk_rows(self, limit: int) -> list[Row]:
        """Of the completions that are about to be taken the first, on the main process."""
        rows: list[Row] = []
        if self._accelerator.is_main_process:
            for scored in self._scored:
                rows += chunk_rows(scored, self._tokenizer, self._teacher_tokenizers, limit - len(rows))
        return rows

    def _write(self, rows: Sequence[Row], chunks: Sequence[Row], step: int, prefix: str = "") -> None:
        if rows and self._accelerator.is_main_process:
            write_completions(rows, self._args, step, prefix)
            if chunks:
                write_chunks(chunks, self._args.output_dir, step, prefix)

    def _peak_memory(self) -> dict[str, float]:
        device = self._accelerator.device
        # Else the parent measures memory from a mark that is set anew here.
        if device.type != "cuda" or not self._args.skip_memory_metrics:
            return {}
        peak = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory/peak_gb": max(gather_object([peak]))}
