"""What a run would do, and all that it would refuse, before any weights are loaded."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl.trainer.utils import get_peft_config

from ..alignment.aligner import TokenizerAligner
from ..errors import ConfigError, ModelError
from ..planning.gpus import GPUS
from ..planning.models import ModelSpec, build
from ..planning.plan import MemoryPlan
from . import loading, setup
from .config import CrossTokenizerGKDConfig
from .config_checks import ObjectiveName
from .dataset_checks import prepare_datasets
from .memory import plan_for_training
from .objective import choose_objective
from .script import resolve, student_quantization
from .script_arguments import Arguments
from .script_data import load_datasets
from .several_teachers import TeacherSource, join_collators, read_teachers


_NOT_SHOWN = ("dry_run", "hub_token")


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run that passed all checks that need no weights.

    Attributes:
        arguments: As they were given, with what follows from them.
        objective: What would be minimised.
        student_tokenizer: The student's.
        student_config: The student's.
        teachers: What is known of each without its weights, and without asking a server.
        train_dataset: As the trainer would have it.
        eval_dataset: The same; `None` if there is no evaluation.
    """

    arguments: Arguments
    objective: ObjectiveName
    student_tokenizer: PreTrainedTokenizerBase
    student_config: PreTrainedConfig
    teachers: Sequence[TeacherSource]
    train_dataset: Any
    eval_dataset: Any


def check_run(arguments: Arguments) -> CheckedRun:
    """Check everything that can be checked without weights.

    Raises:
        XTokError: Whatever the trainer would refuse at the same stage.
    """
    resolve(arguments)
    args, student = arguments.training, arguments.model.model_name_or_path
    setup.check_args(args, student)
    setup.refuse_arguments(student, get_peft_config(arguments.model))
    setup.check_student_loading(student, args, student_quantization(arguments.model))
    tokenizer = loading.load_student_tokenizer(None, student, args)
    config = loading.read_config(student, args.model_init_kwargs, args)
    _check_adapter(config, get_peft_config(arguments.model))
    # A server is not asked: it may not run yet.
    teachers = read_teachers(None, None, (student, tokenizer, config), args, asking=False)
    datasets = prepare_datasets(*load_datasets(arguments), join_collators(teachers), args, None)
    aligner = TokenizerAligner(tokenizer, teachers[0].tokenizer)
    objective = choose_objective(args, aligner, datasets[1], several=len(teachers) > 1)
    return CheckedRun(arguments, objective, tokenizer, config, teachers, *datasets)


def _check_adapter(config: PreTrainedConfig, adapter: PeftConfig | None) -> None:
    if adapter is not None:
        # A model that cannot be built without weights may well be trained.
        with suppress(ModelError):
            build(ModelSpec(config, adapter=adapter))


def plan_run(run: CheckedRun, teacher_ratio: float) -> MemoryPlan:
    """The memory that the run needs on each device, and without a GPU nothing about cards.

    Args:
        run: The run.
        teacher_ratio: Teacher tokens for each student token.

    Raises:
        ConfigError: If a setting has no known memory, or one of several teachers is loaded here.
        ModelError: If the memory of one of the models is not known.
    """
    args, model = run.arguments.training, run.arguments.model
    here = [source.key for source in run.teachers if source.urls is None]
    if len(run.teachers) > 1 and here:
        raise ConfigError(
            f"Of {len(run.teachers)} teachers, {', '.join(here)} would be loaded here, on the same device at the same "
            "time, and a plan is for one teacher."
        )
    return plan_for_training(
        args,
        run.student_config,
        run.teachers[0].config,
        peft_config=get_peft_config(model),
        quantization_config=student_quantization(model),
        teacher_ratio=teacher_ratio,
        gpus=() if args.use_cpu else tuple(GPUS.values()),
    )


def changed_arguments(arguments: Arguments) -> dict[str, Any]:
    """All that is not at its default, as a file for `--config` would say it."""
    changed: dict[str, Any] = {}
    for holder in (arguments.model, arguments.script, arguments.mixture, arguments.training):
        values, defaults = _values(holder), _values(type(holder)())
        changed |= {name: value for name, value in values.items() if value != defaults[name]}
    return {name: value for name, value in changed.items() if name not in _NOT_SHOWN}


def _values(holder: Any) -> dict[str, Any]:
    if not isinstance(holder, CrossTokenizerGKDConfig):
        return asdict(holder)
    # Everything whose name ends like that of a secret is hidden by transformers.
    return {**holder.to_dict(), "eos_token": holder.eos_token, "pad_token": holder.pad_token}
