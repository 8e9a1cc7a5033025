"""Evaluation and prediction: on completions that the student samples, or on those of a dataset."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from .checkpoints import ResumableGKDTrainer
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator
from .dataset_checks import prepare_evaluation
from .rollouts import evaluation_seed
from .run_log import RunLog
from .setup import refuse_nothing_written
from .teachers import Teaching
from .window import Mode


class EvaluatingGKDTrainer(ResumableGKDTrainer):
    """`GKDTrainer` that treats a dataset to evaluate on alike, whenever it comes."""

    # The parents and the trainer itself set these.
    args: CrossTokenizerGKDConfig
    compute_metrics: Callable[[EvalPrediction], dict] | None
    data_collator: Any
    teacher: Teaching
    _eval_collator: Any
    _run_log: RunLog
    _eval_batches: int

    def evaluate(self, eval_dataset: Any = None, *args, **kwargs) -> dict[str, float]:
        """Evaluate on rollouts for the prompts of a dataset, or with `eval_on_dataset` on its completions.

        Args:
            eval_dataset: A dataset in one of the formats of `docs/data_formats.md`, several by name, or the name of
                one of those of the trainer; `None` takes all of those.
            *args: Those of the parent.
            **kwargs: Those of the parent.

        Raises:
            DataError: If the dataset is empty or has no prompts that can be read.
        """
        return super().evaluate(self._prepared(eval_dataset), *args, **kwargs)

    def predict(self, test_dataset: Any, *args, **kwargs) -> PredictionOutput:
        """Sample a completion for each prompt of a dataset.

        Args:
            test_dataset: As for `evaluate`.
            *args: Those of the parent.
            **kwargs: Those of the parent.

        Returns:
            `predictions`, the completions as texts; `label_ids`, the dataset's own, as `compute_metrics` gets them
            (`None` without it); and `metrics`, those of an evaluation.

        Raises:
            ConfigError: With `eval_on_dataset`, where the student writes nothing.
            DataError: If the dataset is empty or has no prompts that can be read.
        """
        refuse_nothing_written(self.args, "`predict` returns")
        with self._run_log.keeping_evaluations():
            output = super().predict(self._prepared(test_dataset), *args, **kwargs)
            texts = self._run_log.evaluated_texts()
        return output._replace(predictions=texts.predictions, label_ids=texts.label_ids)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The loader of an evaluation dataset."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            with self._collating_for_evaluation():
                return super().get_eval_dataloader(eval_dataset)
        # With persistent workers the parent would keep it, and take it for that of the next dataset, too.
        return self.get_test_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """The loader of a dataset to predict on."""
        with self._collating_for_evaluation():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _collating_for_evaluation(self) -> Iterator[None]:
        for_training, self.data_collator = self.data_collator, self._eval_collator
        try:
            yield
        finally:
            self.data_collator = for_training

    def evaluation_loop(self, *args, **kwargs):
        """Evaluate with the same random numbers every time."""
        self._eval_batches = 0
        self._run_log.start_evaluation(self.compute_metrics)
        try:
            with self._keeping_finished_steps():
                output = super().evaluation_loop(*args, **kwargs)
        finally:
            self.teacher.forget()
        prefix = kwargs.get("metric_key_prefix", "eval")
        # What the user's own metrics are called does not hide the loss.
        output.metrics.update({**self._run_log.end_evaluation(self.state.global_step, prefix), **output.metrics})
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> tuple[Tensor, None, None]:
        """Score completions for the prompts of one evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        self._eval_batches += 1
        with torch.no_grad(), evaluation_seed(self.args, self._eval_batches):
            batches, trained = self._make_window([inputs], "eval", self._rows_that_count(inputs))
            loss = self.compute_loss(model, batches[0], num_items_in_batch=trained)
        # That of all ranks: the parent weighs each rank's by its rows, which says nothing of its tokens.
        loss = self.accelerator.reduce(loss, "mean")
        self._run_log.end_evaluation_batch(inputs)
        return loss, None, None

    @abstractmethod
    def _make_window(
        self, prompts: Sequence[dict[str, Tensor]], mode: Mode, rows: int | None = None
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of some prompts, aligned, and the number of their trained tokens."""

    def _rows_that_count(self, inputs: Mapping[str, Tensor]) -> int:
        """How many rows of a batch of an evaluation do not merely fill up the last batch of several processes."""
        loaded, rows = self.accelerator.gradient_state, len(next(iter(inputs.values())))
        if not loaded.end_of_dataloader or loaded.remainder <= 0:
            return rows
        return min(max(loaded.remainder - rows * self.args.process_index, 0), rows)

    def _prepared(self, dataset: Any) -> Any:
        if dataset is None or isinstance(dataset, str):
            return dataset
        collator = self._eval_collator if isinstance(self._eval_collator, PromptCollator) else None
        return prepare_evaluation(dataset, collator, self.args)
