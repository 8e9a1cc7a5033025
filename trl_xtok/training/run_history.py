"""What a run was and what it logged, in one file that is there whatever was saved and however the run ended."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .config import CrossTokenizerGKDConfig
from .loading import name_of
from .model_card import own_version
from .teachers import LocalTeacher, Teacher


FILE_NAME = "run_history.jsonl"
# Told even where they have their default.
_ALWAYS = (
    "credit",
    "segmentation",
    "lmbda",
    "beta",
    "temperature",
    "learning_rate",
    "lr_scheduler_type",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_new_tokens",
    "max_length",
    "max_steps",
    "num_train_epochs",
    "seed",
)
# Told elsewhere, or set by the parents to the same in every run.
# An address is not for who reads a published run.
_NEVER = ("objective", "output_dir", "teacher_server_url", "accelerator_config", "remove_unused_columns")
_PACKAGES = ("trl", "transformers", "torch", "peft", "accelerate", "tokenizers")


class RunHistory(TrainerCallback):
    """Adds a line to `output_dir/run_history.jsonl` when training begins, and one per log.

    The first line of each training is `{"start": {...}}` with the step at which it begins, so that a reader knows what
    a resumed run has trained again. The others are the entries of `TrainerState.log_history`. Numbers that are not
    finite are `null`.

    Args:
        trainer: Says what the run is; it need not be set up yet.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._before: list[dict[str, Any]] = []
        self._started = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say what is trained, and from which step on."""
        trainer = self._trainer
        facts = describe_run(trainer.model, [*trainer.teachers.values()], trainer.objective.name, trainer.args)
        start = {"step": state.global_step, "max_steps": state.max_steps, **facts}
        # What was evaluated before a run goes on belongs to no step of it.
        before = self._before if state.global_step == 0 else []
        self._started, self._before = True, []
        self._add(args, state, {"start": start}, *before)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the entry that was just logged."""
        if self._started:
            self._add(args, state, state.log_history[-1])
        else:
            self._before.append(state.log_history[-1])

    def _add(self, args: TrainingArguments, state: TrainerState, *entries: Mapping[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(entry), allow_nan=False, default=str) + "\n" for entry in entries)


def describe_run(
    student: PreTrainedModel, teachers: Sequence[Teacher], objective: str, args: CrossTokenizerGKDConfig
) -> dict[str, Any]:
    """Models, objective, settings and versions of a run, as JSON takes them.

    Of a local folder only its own name is told, since a run's folder may be published.

    Args:
        student: The model that is trained.
        teachers: The models that score.
        objective: What is minimised.
        args: The training arguments.
    """
    return {
        "student": _describe(student),
        "teacher": _describe_teachers(teachers),
        "objective": objective,
        "settings": _settings(args),
        "versions": {
            "trl-xtok": own_version(),
            **{package: version(package) for package in _PACKAGES},
            "python": platform.python_version(),
        },
        "device": str(args.device),
        "processes": args.world_size,
    }


def _describe(model: PreTrainedModel) -> dict[str, Any]:
    name = name_of(model)
    return {
        "name": Path(name).name if Path(name).is_dir() else name,
        "architecture": model.config.model_type,
        "parameters": model.num_parameters(),
        "trained": model.num_parameters(only_trainable=True),
    }


def _describe_teachers(teachers: Sequence[Teacher]) -> dict[str, Any]:
    described = [_describe_teacher(teacher) for teacher in teachers]
    if len(described) == 1:
        return described[0]
    return {name: ", ".join(each[name] for each in described) for name in ("name", "architecture")}


def _describe_teacher(teacher: Teacher) -> dict[str, Any]:
    if isinstance(teacher, LocalTeacher):
        return _describe(teacher.model)
    return {"name": _published(teacher.name), "architecture": "served"}


def _settings(args: CrossTokenizerGKDConfig) -> dict[str, Any]:
    """Those that matter most, and those that are not the default."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(args)
    }
    values = args.to_dict()
    others = [
        name
        for name in sorted(defaults)
        if name not in (*_ALWAYS, *_NEVER) and values[name] not in (None, [], {}, defaults[name])
    ]
    # What is called a token is masked, also where it is one of the vocabulary.
    return {name: _published(values[name]) for name in (*_ALWAYS, *others) if not name.endswith("_token")}


def _published(value: Any) -> Any:
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
