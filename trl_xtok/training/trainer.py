"""The trainer: on-policy distillation between models of different families.

One optimizer step is one window of micro-batches. Before its first backward the window is sampled, aligned and scored
by the teacher, since the number of tokens that are trained on, by which the loss is normalized, is known only then.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset, IterableDataset
from jaxtyping import Float
from peft import PeftConfig
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from . import loading, setup
from .advantages import fix_means
from .aligning import WindowAligner
from .config import CrossTokenizerGKDConfig
from .data import unpad
from .dataset_checks import evaluation_collator, prepare_datasets, refuse_short_stream
from .engine_rollouts import make_engine
from .evaluation import EvaluatingGKDTrainer
from .metrics import Mode
from .model_card import PAPER, add_teachers
from .objective import LOSS_PARTS, choose_objective, make_objective, student_scores, token_losses
from .off_policy import TeacherWriter, is_on_policy, read_completions
from .rollouts import OnWritten, generate_completions, sampling_seed
from .run_history import RunHistory
from .run_log import RunLog
from .scoring import completion_logps, in_forward
from .segmentation import add_canonical_paths
from .several_teachers import join_collators, read_teachers
from .sharding import prepare_forward
from .teachers import LocalTeacher, all_of
from .trl_compat import (
    SFTTrainer,
    TeacherStandIn,
    gkd_init,
    unwrap_model_for_generation,
)
from .window import MicroBatch, StudentScores


_OFF: Mode = "off_policy"


class CrossTokenizerGKDTrainer(EvaluatingGKDTrainer):
    """
    Trainer for on-policy distillation of a teacher into a student with another tokenizer.

    The student writes, both texts are cut into chunks that both tokenizers delimit, the teacher scores the chunks, and
    each chunk's signal goes back to the student's tokens. For details, see the paper [Breaking the Tokenizer Barrier:
    On-Policy Distillation across Model Families](https://huggingface.co/papers/2606.09456).

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            Student to be trained, or its name or path.
        teacher_model ([`~transformers.PreTrainedModel`] or `str`, *optional*):
            Teacher, or its name or path. `None` takes `args.teacher_model_name_or_path`. Of one behind
            `args.teacher_server_url`, nothing but the tokenizer and the configuration is read from there. A dictionary
            has several by name, and each row of a dataset names its own in a `teacher` column.
        args ([`CrossTokenizerGKDConfig`], *optional*):
            Training arguments. `None` takes the defaults, with `output_dir` named after the student.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Must return what [`PromptCollator`] returns, which is the default.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset in one of the formats of `docs/data_formats.md`.
        eval_dataset ([`~datasets.Dataset`], [`~datasets.IterableDataset`] or `dict` of them, *optional*):
            Dataset with prompts; `evaluate` samples completions for them, unless `args.eval_on_dataset`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the student. `None` takes the one that belongs to `model`.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            Computes metrics of the completions that an evaluation sampled. `predictions` are their texts, `label_ids`
            the dataset's completions as texts (`None` for a row without one; `None` at all if no row has one) and
            `inputs` the prompts as the student read them, all without special tokens.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to use during training.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and learning rate scheduler.
        preprocess_logits_for_metrics (`Callable`, *optional*):
            Refused: this trainer builds no logits.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train instead of the whole student, for example `LoraConfig()`.
        formatting_func (`Callable`, *optional*):
            Refused: this trainer builds no rows of text.
        teacher_processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer of the teacher, or a dictionary of them. `None` takes the one that belongs to the teacher.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a student given by name.

    Raises:
        ConfigError: If the arguments contradict each other or ask for what is not supported.
        DataError: If the dataset is empty or has no prompts that can be read.
        TemplateError: If a conversation cannot be rendered for one of the two models.
        TokenizerError: If one of the tokenizers cannot be read exactly.
        ModelError: If one of the models cannot be scored exactly.
    """

    # The parents leave these open.
    args: CrossTokenizerGKDConfig
    processing_class: Any
    model: Any

    _tag_names: ClassVar = ["trl", "gkd", "trl-xtok"]
    _name = "Cross-Tokenizer GKD"
    _paper: ClassVar = PAPER
    # `compute_loss` divides by the trained tokens of the whole optimizer step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str,
        teacher_model: PreTrainedModel | nn.Module | str | Mapping[str, Any] | None = None,
        args: CrossTokenizerGKDConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        peft_config: PeftConfig | None = None,
        formatting_func: Callable | None = None,
        *,
        teacher_processing_class: PreTrainedTokenizerBase | Mapping[str, PreTrainedTokenizerBase] | None = None,
        quantization_config: BitsAndBytesConfig | None = None,
    ):
        args = setup.check_args(args, loading.check_model(model, "model"), compute_metrics)
        unused = {"preprocess_logits_for_metrics": preprocess_logits_for_metrics, "formatting_func": formatting_func}
        setup.refuse_arguments(model, peft_config, **unused)
        setup.check_student_loading(model, args, quantization_config)
        tokenizer = loading.load_student_tokenizer(processing_class, model, args)
        config = loading.read_config(model, args.model_init_kwargs, args)
        sources = read_teachers(teacher_model, teacher_processing_class, (model, tokenizer, config), args)
        collator = join_collators(sources)
        train_dataset, eval_dataset = prepare_datasets(train_dataset, eval_dataset, collator, args, data_collator)

        with gkd_init(args, quantization_config):
            super().__init__(
                model,
                TeacherStandIn(config),
                args=args,
                data_collator=data_collator or collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                compute_metrics=compute_metrics,
                callbacks=[*(callbacks or ()), RunHistory(self)],
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self._eval_collator = data_collator or evaluation_collator(collator, args, references=bool(compute_metrics))
        setup.finish_generation_config(self.generation_config, tokenizer)
        self.aligners = [setup.make_aligner(source.collator, self.generation_config) for source in sources]
        self.aligner = self.aligners[0]
        loading.prepare_student(self.model)
        student = prepare_forward(self.model, self.accelerator, sharded=self.is_fsdp_enabled)
        name = choose_objective(args, self.aligner, eval_dataset, several=len(sources) > 1)
        self.teachers = {source.key: source.load(args) for source in sources}
        self.teacher = all_of(self.teachers)
        self.teacher_model = self.teacher.model
        self.objective = make_objective(name, args, self.aligners, student, self.teachers)
        self._written = (
            TeacherWriter(cast(LocalTeacher, self.teacher), collator, args) if args.seq_kd else read_completions
        )
        self._run_log = RunLog(tokenizer, [source.tokenizer for source in sources], args, self.accelerator)
        self._engine = make_engine(self.model, tokenizer, self.generation_config, args, self.accelerator)

    # One optimizer step: rollouts, alignment, teacher scores, and what the whole window decides.

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Turn the prompts of the next optimizer step into scored micro-batches and count their trained tokens."""
        prompts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if len(prompts) < num_batches and isinstance(self.train_dataset, IterableDataset):
            refuse_short_stream(len(prompts), num_batches, self.state.global_step)
            # The parent would put the rest of a stream into the first step of its next pass.
            return [], None
        if not prompts:
            return [], None
        # The first window of a run, resumed or not, finds the model as it was loaded: in evaluation mode.
        self.model.train()
        seed = self.args.seed, self.state.global_step, self.args.process_index
        with self._keeping_finished_steps(), sampling_seed(*seed, device=self.args.device):
            return self._score_window(prompts, "train" if is_on_policy(self.args, self.state.global_step) else _OFF)

    def _score_window(
        self, prompts: Sequence[dict[str, Tensor]], mode: Mode, rows: int | None = None
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """The micro-batches of a window and their trained tokens; `rows` of a single one count, all if `None`."""
        metrics = self._run_log.metrics[mode]
        on_policy = not self.args.eval_on_dataset if mode == "eval" else mode != _OFF
        teachers = [*self.teachers.values()]
        window = WindowAligner(self.aligners, prompts, metrics, teachers=teachers if on_policy else (), rows=rows)
        read = self._written if mode == _OFF else read_completions
        with self.teacher.expecting():
            with metrics.timed("rollout"):
                windows = window.finish(self._roll_out(prompts, window.add) if on_policy else read(prompts))
            with metrics.timed("teacher"), self.teacher.on_device():
                selection = self.objective.selection(self.args, self.aligners, on_policy=on_policy)
                options = {"teachers": teachers, "selection": selection, "device": self.args.device}
                batches = self.objective.score_window(windows, **options)
        for batch in batches:
            batch.rollouts = batch.rollouts[:rows]
        self._run_log.start_step(batches, mode)
        with metrics.timed("student"):
            trained = self._fix_window(batches, mode)
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

    def _fix_window(self, batches: Sequence[MicroBatch], mode: Mode) -> Tensor:
        """Fix what depends on the whole optimizer step; return the number of its trained tokens."""
        counts = self.accelerator.reduce(torch.stack([batch.counts() for batch in batches]).sum(0), "sum")
        (scored, charged, _, sampled), trained = counts.tolist(), counts[2].clamp(min=1)
        if mode != "eval" and not batches[0].selection.imitate:
            self._run_log.check_coverage(scored / max(sampled, 1), mode)
        if not batches[0].selection.on_policy:
            return trained
        if self.args.segmentation == "text":
            options = {"device": self.args.device, "always": self.is_fsdp_enabled}
            for batch in batches:
                add_canonical_paths(batch, partial(self._student_logps, self.model), **options)
        is_whole_step = len(batches) == self.accelerator.num_processes == 1
        needs_mean = self.args.advantage_baseline == "mean" or (charged and self.args.dropped_advantage == "mean")
        if needs_mean and not is_whole_step:
            fix_means(batches, partial(self._student_scores, self.model), self.args, self.accelerator)
        return trained

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward on one micro-batch; its rollouts are sampled already."""
        with self._run_log.metrics[self._mode_of(inputs["micro_batch"])].timed("student"):
            return SFTTrainer.training_step(self, model, inputs, num_items_in_batch)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ):
        """The loss of the micro-batch, per trained token of the optimizer step."""
        batch: MicroBatch = inputs["micro_batch"]
        scores = self._student_scores(model, batch)
        losses, sums, credited = token_losses(scores, batch, self.objective, self.args)
        # DDP averages over the ranks; the normalizer counts the tokens of all of them.
        scale = self.accelerator.num_processes / num_items_in_batch
        loss = losses.sum() * scale
        sums |= {"loss": loss.detach()} | {name: sums[name] * scale for name in LOSS_PARTS if name in sums}
        self._run_log.add(batch, scores.logps, credited, sums, self._mode_of(batch))
        return (loss, None) if return_outputs else loss

    def _mode_of(self, batch: MicroBatch) -> Mode:
        return "eval" if not self.model.training else "train" if batch.selection.on_policy else _OFF

    def _student_logps(self, model: nn.Module, packed: dict[str, Tensor]) -> Float[Tensor, " tokens"]:
        score = partial(completion_logps, packed=packed, **self.args.scoring)
        return in_forward(model, self.accelerator, score)

    def _student_scores(self, model: nn.Module, batch: MicroBatch) -> StudentScores:
        score = partial(student_scores, batch=batch, objective=self.objective, args=self.args)
        return in_forward(model, self.accelerator, score)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last log, and write their completions down."""
        if self.model.training:
            logs.update(self._run_log.collect())
        super().log(logs, start_time)
        if self.model.training:
            self._run_log.write_completions(self.state.global_step)

    def create_model_card(self, *args, **kwargs) -> None:
        """Create a draft of a model card, as the parent does, and name the teacher in it."""
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            names = [teacher.name for teacher in self.teachers.values()]
            add_teachers(Path(self.args.output_dir, "README.md"), names, self.objective.name)
