"""What a run would do, and all that it would refuse, before any weights are loaded."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from trl.trainer.utils import get_peft_config

from ..alignment.aligner import TokenizerAligner
from ..errors import ModelError
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
from .served_teacher import served_config
from .several_teachers import refuse_names


_NOT_SHOWN = ("dry_run", "hub_token")


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run that passed all checks that need no weights.

    Attributes:
        arguments: As they were given, with what follows from them.
        objective: What would be minimised.
        student_tokenizer: The student's.
        teacher_tokenizer: The teacher's.
        student_config: The student's.
        teacher_config: The teacher's.
        teacher_chat_template: The teacher's template, if it is not that of its tokenizer.
        train_dataset: As the trainer would have it.
        eval_dataset: The same; `None` if there is no evaluation.
    """

    arguments: Arguments
    objective: ObjectiveName
    student_tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase
    student_config: PreTrainedConfig
    teacher_config: PreTrainedConfig
    teacher_chat_template: str | None
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
    refuse_names(None, args)
    teacher = setup.check_teacher(None, student, args)
    tokenizers = (
        loading.load_student_tokenizer(None, student, args),
        loading.load_teacher_tokenizer(None, teacher, args),
    )
    configs = loading.read_config(student, args.model_init_kwargs, args), _teacher_config(teacher, tokenizers[1], args)
    _check_adapter(configs[0], get_peft_config(arguments.model))
    collator = setup.make_collator(*tokenizers, *configs, args)
    datasets = prepare_datasets(*load_datasets(arguments), collator, args, None)
    objective = choose_objective(args, TokenizerAligner(*tokenizers), datasets[1])
    return CheckedRun(arguments, objective, *tokenizers, *configs, collator.teacher_chat_template, *datasets)


def _check_adapter(config: PreTrainedConfig, adapter: PeftConfig | None) -> None:
    if adapter is not None:
        # A model that cannot be built without weights may well be trained.
        with suppress(ModelError):
            build(ModelSpec(config, adapter=adapter))


def _teacher_config(
    teacher: loading.Model | None, tokenizer: PreTrainedTokenizerBase, args: CrossTokenizerGKDConfig
) -> PreTrainedConfig:
    # A server is not asked: it may not run yet.
    served = args.teacher_server_url is not None
    return served_config(teacher, tokenizer, args) if served else loading.read_teacher_config(teacher, args)


def plan_run(run: CheckedRun, teacher_ratio: float) -> MemoryPlan:
    """The memory that the run needs on each device, and without a GPU nothing about cards.

    Args:
        run: The run.
        teacher_ratio: Teacher tokens for each student token.

    Raises:
        ConfigError: If a setting has no known memory.
        ModelError: If the memory of one of the models is not known.
    """
    args, model = run.arguments.training, run.arguments.model
    return plan_for_training(
        args,
        run.student_config,
        run.teacher_config,
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
