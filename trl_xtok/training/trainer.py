"""The trainer: on-policy distillation between models of different families."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from datasets import Dataset, IterableDataset
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
from .config import CrossTokenizerGKDConfig
from .dataset_checks import evaluation_collator, prepare_datasets
from .engine_rollouts import make_engine
from .model_card import PAPER, add_teachers
from .objective import choose_objective, make_objective
from .off_policy import TeacherWriter, read_completions
from .run_history import RunHistory
from .run_log import RunLog
from .several_teachers import join_collators, read_teachers
from .sharding import prepare_forward
from .step import SteppingGKDTrainer
from .teachers import LocalTeacher, all_of
from .trl_compat import TeacherStandIn, gkd_init


class CrossTokenizerGKDTrainer(SteppingGKDTrainer):
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
