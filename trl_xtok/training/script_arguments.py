"""The arguments of a run from the command line, as those of TRL's scripts, and what is wrong with them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NoReturn

from trl.scripts.utils import DatasetMixtureConfig, ScriptArguments, TrlParser
from trl.trainer.model_config import ModelConfig

from ..errors import ConfigError
from .config import CrossTokenizerGKDConfig


# Arguments that have no effect without another one.
_NEEDS = {
    "use_peft": ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters",
                 "lora_modules_to_save", "use_rslora", "use_dora"),
    "load_in_4bit": ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
}  # fmt: skip
_OF_ONE_DATASET = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_streaming")
_OF_MIXTURES = ("streaming", "test_split_size")


@dataclass
class GKDScriptArguments(ScriptArguments):
    """TRL's arguments common to all scripts, and `dry_run`."""

    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Print the resolved arguments, the audit of the two tokenizers and an estimate of the memory, "
            "after everything was checked that needs no weights. Trains nothing."
        },
    )


@dataclass(frozen=True)
class Arguments:
    """All that was given to `trl-xtok gkd`.

    Attributes:
        script: Which dataset, and whether to train at all.
        training: The training arguments.
        model: The student, its precision and its adapter.
        mixture: Several datasets.
        unknown_in_config: What no dataclass has a field for, of the configuration file.
        unknown: The same of the command line.
    """

    script: GKDScriptArguments
    training: CrossTokenizerGKDConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    unknown_in_config: list[str]
    unknown: list[str]


class GKDParser(TrlParser):
    """`TrlParser` for the four dataclasses; its errors are one paragraph, and values in YAML are checked, too."""

    def __init__(self, prog: str):
        types = (GKDScriptArguments, CrossTokenizerGKDConfig, ModelConfig, DatasetMixtureConfig)
        super().__init__(types, prog=prog, allow_abbrev=False, add_help=False)

    def actions(self) -> list[argparse.Action]:
        """Every argument, in the order of the dataclasses."""
        return [action for action in self._actions if action.option_strings]

    def flags(self) -> list[str]:
        """Every flag with underscores."""
        return [action.option_strings[0] for action in self.actions()]

    def error(self, message: str) -> NoReturn:
        """Leave with status 2, without a usage of two hundred flags."""
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists all arguments.\n")

    def read(self, argv: Sequence[str]) -> Arguments:
        """Read the command line and the file behind `--config`; flags win.

        Raises:
            ConfigError: If arguments contradict each other, would have no effect, or are refused by their dataclass.
        """
        try:
            *parts, in_config, unknown = self.parse_args_and_config(
                argv, return_remaining_strings=True, separate_remaining_strings=True
            )
        except ConfigError:
            raise
        except (ImportError, TypeError, ValueError) as error:
            # Of the dataclasses of TRL and transformers.
            raise ConfigError(str(error)) from error
        arguments = Arguments(*parts, in_config, unknown)
        self._check_needed(arguments)
        _refuse_ignored(arguments)
        return arguments

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Parse, and say whose JSON it is that cannot be read."""
        parsed, unknown = super().parse_known_args(args, namespace)
        for name in CrossTokenizerGKDConfig._VALID_DICT_FIELDS:
            given = vars(parsed)[name]
            # Of a flag that takes several values.
            is_list = isinstance(given, list) and len(given) == 1
            value = given[0] if is_list else given
            try:
                if isinstance(value, str) and value.startswith("{"):
                    loaded = json.loads(value)
                    if is_list:
                        setattr(parsed, name, loaded)
            except json.JSONDecodeError as error:
                self.error(f"argument --{name}: {value!r} is not JSON ({error})")
        return parsed, unknown

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Take values from a configuration file, each of the type that its flag has."""
        for action in self.actions():
            value = kwargs.get(action.dest)
            # argparse reads text itself.
            if value is not None and (not isinstance(value, str) or action.choices) and not _fits(action, value):
                self.error(f"configuration file: `{action.dest}` must be {_expected(action)}, got {value!r}")
        return super().set_defaults_with_config(**kwargs)

    def _check_needed(self, arguments: Arguments) -> None:
        if arguments.model.model_name_or_path is None:
            self.error("there is no student. Name it with --model_name_or_path.")
        if arguments.training.teacher_model_name_or_path is None:
            self.error("there is no teacher. Name it with --teacher_model_name_or_path.")
        if arguments.script.dataset_name is None and not arguments.mixture.datasets:
            self.error("there is no dataset. Name it with --dataset_name, or list several as `datasets` in --config.")


def _fits(action: argparse.Action, value: Any) -> bool:
    if action.choices:
        return value in action.choices
    if isinstance(value, list):
        return action.nargs == "+"
    if isinstance(value, Mapping):
        return action.dest in CrossTokenizerGKDConfig._VALID_DICT_FIELDS
    if isinstance(value, bool):
        return _type_name(action) not in ("int", "float") and not action.dest.endswith("_strategy")
    return _type_name(action) != "int" or isinstance(value, int)


def _expected(action: argparse.Action) -> str:
    if action.dest.endswith("_strategy"):
        return "text (YAML reads a bare no, off, yes or on as a truth value, so put it in quotes)"
    if action.choices:
        return f"one of {', '.join(map(str, action.choices))}"
    return {"int": "a whole number", "float": "a number"}.get(_type_name(action), "one value")


def _type_name(action: argparse.Action) -> str:
    # A function of the parser where None is allowed, too.
    return action.type.__name__ if isinstance(action.type, type | FunctionType) else ""


def _refuse_ignored(arguments: Arguments) -> None:
    """Refuse what nothing would read."""
    model = arguments.model
    for needed, names in _NEEDS.items():
        for name in names if not vars(model)[needed] else ():
            _refuse(model, name, f"has no effect without `--{needed}`. Set that, or leave it out.")
    _refuse(model, "lora_task_type", "is not what is trained here. Leave it out.")
    _refuse(arguments.script, "ignore_bias_buffers", "has no effect here. Leave it out.")
    for name in ("do_train", "do_predict"):
        _refuse(arguments.training, name, "has no effect: this command trains. Leave it out.")
    if arguments.training.do_eval and arguments.training.eval_strategy == "no":
        raise ConfigError("`--do_eval` has no effect with `--eval_strategy no`. Set when to evaluate instead.")
    if arguments.mixture.datasets:
        for name in _OF_ONE_DATASET:
            _refuse(arguments.script, name, "has no effect beside `datasets`. Keep one of the two.")
    else:
        for name in _OF_MIXTURES:
            _refuse(arguments.mixture, name, "has no effect without `datasets`, a mixture in the configuration file.")


def _refuse(holder: Any, name: str, reason: str) -> None:
    value = vars(holder)[name]
    if value != type(holder).__dataclass_fields__[name].default:
        raise ConfigError(f"`--{name} {value}` {reason}")
