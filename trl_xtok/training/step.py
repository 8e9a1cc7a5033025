"""One optimizer step: a window of micro-batches is sampled and aligned, then each is scored and trained on.

How many tokens the step trains on, by which its loss is normalized, is known from the alignment and from what the
teacher can read at all. So a micro-batch goes through the student as soon as its own scores are there, while those of
the ones behind it are still on their way.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from datasets import IterableDataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GenerationConfig

from ..alignment.aligner import TokenizerAligner
from .advantages import fix_means
from .aligning import WindowAligner
from .config import CrossTokenizerGKDConfig
from .data import unpad
from .dataset_checks import refuse_short_stream
from .engine_rollouts import EngineRollouts
from .evaluation import EvaluatingGKDTrainer
from .objective import LOSS_PARTS, Objective, student_scores, token_losses
from .off_policy import is_on_policy, read_completions
from .rollouts import OnWritten, RandomState, generate_completions, sampling_seed
from .run_log import RunLog
from .scoring import completion_logps, in_forward
from .segmentation import add_canonical_paths
from .teachers import Teacher, Teaching
from .trl_compat import SFTTrainer, unwrap_model_for_generation
from .window import MicroBatch, Mode, StudentScores


_OFF: Mode = "off_policy"


class SteppingGKDTrainer(EvaluatingGKDTrainer):
    """`GKDTrainer` whose optimizer steps, and evaluations, go from prompts over chunks to the loss."""

    # The trainer itself and the parents set these.
    args: CrossTokenizerGKDConfig
    model: Any
    aligners: Sequence[TokenizerAligner]
    generation_config: GenerationConfig
    objective: Objective
    teacher: Teaching
    teachers: dict[str, Teacher]
    _engine: EngineRollouts | None
    _run_log: RunLog
    _written: Callable[[Sequence[dict[str, Tensor]]], list[list[int]]]
    _upcoming: Iterator[MicroBatch]
    _random_state: RandomState

    # `compute_loss` divides by the trained tokens of the whole optimizer step.
    loss_is_scaled_for_ga: ClassVar = True

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """See [`ResumableGKDTrainer.train`]; however it ends, the teacher is asked for nothing more."""
        self._run_log.start_training()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.teacher.forget()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Turn the prompts of the next optimizer step into aligned micro-batches and count their trained tokens."""
        prompts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(prompts) < num_batches and isinstance(self.train_dataset, IterableDataset):
            refuse_short_stream(len(prompts), num_batches, self.state.global_step)
            # The parent would put the rest of a stream into the first step of its next pass.
            return [], None
        if not prompts:
            return [], None
        # The first window of a run, resumed or not, finds the model as it was loaded: in evaluation mode.
        self.model.train()
        self._random_state = RandomState(self.args.device)
        seed = self.args.seed, self.state.global_step, self.args.process_index
        with self._keeping_finished_steps(), sampling_seed(*seed, device=self.args.device):
            return self._make_window(prompts, "train" if is_on_policy(self.args, self.state.global_step) else _OFF)

    def _make_window(
        self, prompts: Sequence[dict[str, Tensor]], mode: Mode, rows: int | None = None
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of a window and their trained tokens; `rows` of a single one count, all if `None`."""
        metrics, teachers = self._run_log.metrics[mode], [*self.teachers.values()]
        on_policy = not self.args.eval_on_dataset if mode == "eval" else mode != _OFF
        self.teacher.forget()
        window = WindowAligner(self.aligners, prompts, metrics, teachers=teachers if on_policy else (), rows=rows)
        read = self._written if mode == _OFF else read_completions
        with metrics.timed("rollout"):
            windows = window.finish(self._roll_out(prompts, window.add) if on_policy else read(prompts))
        selection = self.objective.selection(self.args, self.aligners, on_policy=on_policy)
        options = {"teachers": teachers, "selection": selection, "device": self.args.device}
        batches = self.objective.assemble_window(windows, **options)
        for batch in batches:
            # Those that only fill up a batch are empty.
            batch.rollouts, batch.mode = batch.rollouts[:rows], mode
        self._run_log.start_step(mode)
        with metrics.timed("student"):
            trained = self._fix_window(batches)
        self._upcoming = iter(batches[1:])
        # The parent counts floating-point operations and tokens from what the model reads.
        return [{**b.packed, "micro_batch": b} for b in batches], trained

    def _roll_out(self, prompts: Sequence[dict[str, Tensor]], on_written: OnWritten) -> list[list[int]]:
        rows = [row for batch in prompts for row in unpad(batch["prompts"], batch["prompt_attention_mask"])]
        if self._engine is not None:
            mode: Mode = "train" if self.model.training else "eval"
            options = {"new_weights": mode == "train" or self._eval_batches == 1, "on_written": on_written}
            return self._engine.generate(self.model, rows, self._run_log.metrics[mode], **options)
        size = self.args.generation_batch_size or self._train_batch_size
        checkpointing = {"gradient_checkpointing_kwargs": self.args.gradient_checkpointing_kwargs}
        options = {"batch_size": size, "device": self.args.device, "on_written": on_written}
        sample = partial(generate_completions, prompts=rows, generation_config=self.generation_config, **options)
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator, **checkpointing) as student:
            return in_forward(student, self.accelerator, sample)

    def _fix_window(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Fix what depends on the whole optimizer step; return the number of its trained tokens."""
        counts = self.accelerator.reduce(torch.stack([batch.counts() for batch in batches]).sum(0), "sum")
        is_whole_step = len(batches) == self.accelerator.num_processes == 1
        charge_mean = self.args.dropped_advantage == "mean" and counts[1] > 0
        needs_mean = batches[0].selection.on_policy and (self.args.advantage_baseline == "mean" or charge_mean)
        if (needs_mean and not is_whole_step) or self.args.offload_teacher:
            self._take_scores(batches)
        if needs_mean and not is_whole_step:
            fix_means(batches, partial(self._student_scores, self.model), self.args, self.accelerator)
        return counts[2].clamp(min=1)

    def _take_scores(self, batches: Sequence[MicroBatch]) -> None:
        """Have the teachers' scores of micro-batches, and what belongs to them; to be called on all ranks."""
        metrics, teachers = self._run_log.metrics[batches[0].mode], [*self.teachers.values()]
        with metrics.timed("teacher"), self.teacher.on_device():
            for batch in batches:
                self.objective.score(batch, teachers)
        if self.args.segmentation == "text" and batches[0].selection.on_policy:
            options = {"device": self.args.device, "always": self.is_fsdp_enabled}
            for batch in batches:
                add_canonical_paths(batch, partial(self._student_logps, self.model), **options)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward on one micro-batch, which is sampled already."""
        batch: MicroBatch = inputs["micro_batch"]
        metrics = self._run_log.metrics[batch.mode]
        with self._keeping_finished_steps(), self._random_state.kept_on_failure(), metrics.timed("student"):
            loss = SFTTrainer.training_step(self, model, inputs, num_items_in_batch)
            # The parent holds on to the micro-batch until the step is over.
            batch.starts = None
            if (upcoming := next(self._upcoming, None)) is not None and not upcoming.is_scored:
                # A device of the teacher's own computes while the student's is busy with what it was just given.
                with metrics.timed("teacher"):
                    self.objective.score_ahead(upcoming, [*self.teachers.values()])
        if self.accelerator.sync_gradients and not batch.selection.imitate:
            self._run_log.check_coverage(batch.mode)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ):
        """The loss of the micro-batch, per trained token of the optimizer step."""
        batch: MicroBatch = inputs["micro_batch"]
        if not batch.is_scored:
            self._take_scores([batch])
        scores = self._student_scores(model, batch)
        losses, sums, credited = token_losses(scores, batch, self.objective, self.args)
        # DDP averages over the ranks; the normalizer counts the tokens of all of them.
        scale = self.accelerator.num_processes / num_items_in_batch
        loss = losses.sum() * scale
        sums |= {"loss": loss.detach()} | {name: sums[name] * scale for name in LOSS_PARTS if name in sums}
        self._run_log.add(batch, scores.logps, credited, sums)
        return (loss, None) if return_outputs else loss

    def _student_logps(self, model: nn.Module, packed: dict[str, Tensor]) -> Float[Tensor, " tokens"]:
        score = partial(completion_logps, packed=packed, **self.args.scoring)
        return in_forward(model, self.accelerator, score)

    def _student_scores(self, model: nn.Module, batch: MicroBatch) -> StudentScores:
        score = partial(student_scores, batch=batch, objective=self.objective, args=self.args)
        return in_forward(model, self.accelerator, score)
