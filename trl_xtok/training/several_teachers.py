"""One teacher or several, each with its own tokenizer; with several, a column of the dataset says whose row it is."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from ..serving.server import key_variable
from . import loading, setup
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator
from .dataset_formats import TEACHER_COLUMN
from .served_teacher import ServedTeacher, connect, served_config
from .server_arguments import refuse_loading
from .teachers import LocalTeacher, Teacher, load_teacher


class TeacherSource(NamedTuple):
    """What is known of a teacher before its weights are loaded.

    Attributes:
        key: What the dataset calls it; empty if it is the only one.
        model: It, or its name or path; `None` for a served one without a name here.
        tokenizer: Its tokenizer.
        urls: Where it is served; `None` if it is loaded here.
        served: It, if a server was asked.
        config: Its configuration.
        collator: Tokenizes prompts for the student and for it.
    """

    key: str
    model: loading.Model | None
    tokenizer: PreTrainedTokenizerBase
    urls: Sequence[str] | None
    served: ServedTeacher | None
    config: PreTrainedConfig
    collator: PromptCollator

    def load(self, args: CrossTokenizerGKDConfig) -> Teacher:
        """The teacher itself."""
        if self.served is not None:
            return self.served
        model = _named(self.model)
        return LocalTeacher(load_teacher(model, args), args, loading.name_of(model))


def read_teachers(
    teacher_model: Any,
    teacher_processing_class: Any,
    student: tuple[loading.Model, PreTrainedTokenizerBase, PreTrainedConfig],
    args: CrossTokenizerGKDConfig,
    *,
    asking: bool = True,
) -> list[TeacherSource]:
    """Tokenizers, configurations and servers of the teacher, or of several by name.

    Args:
        teacher_model: One, or a dictionary of them; `None` takes what `args` name.
        teacher_processing_class: Its tokenizer, or a dictionary of those that are not found by their teacher.
        student: The student, its tokenizer and its configuration.
        args: The training arguments.
        asking: Whether servers are asked, which may not run yet.

    Raises:
        ConfigError: If names do not go together, or `args` ask for what is defined for one teacher only.
    """
    teachers = _one_of(teacher_model, args.teacher_model_name_or_path)
    if not isinstance(teachers, Mapping):
        _refuse_names(teacher_processing_class, args)
        teachers, tokenizers, urls = {"": teachers}, {"": teacher_processing_class}, {"": args.teacher_server_url}
    else:
        _check_several(teachers, teacher_processing_class, args)
        tokenizers, urls = teacher_processing_class or {}, args.teacher_server_url or {}
    return [
        _read(key, model, tokenizers.get(key), urls.get(key), student, args, asking) for key, model in teachers.items()
    ]


def _one_of(teacher_model: Any, named: Any) -> Any:
    """What was given, else what is named."""
    if teacher_model is None or named is None:
        return named if teacher_model is None else teacher_model
    if isinstance(teacher_model, Mapping) or isinstance(named, Mapping):
        raise ConfigError(
            f"`teacher_model` and `args.teacher_model_name_or_path={named!r}` both say which teachers there are. Keep "
            "one of them."
        )
    return teacher_model


def _read(
    key: str,
    teacher_model: Any,
    tokenizer: Any,
    urls: Sequence[str] | None,
    student: tuple[loading.Model, PreTrainedTokenizerBase, PreTrainedConfig],
    args: CrossTokenizerGKDConfig,
    asking: bool,
) -> TeacherSource:
    model, student_tokenizer, config = student
    teacher = setup.check_teacher(teacher_model, model, args, served=urls is not None)
    tokenizer = loading.load_teacher_tokenizer(tokenizer, teacher, args)
    served = None if urls is None or not asking else connect(urls, teacher, tokenizer, args, key)
    if served is not None:
        teacher_config = served.config
    elif urls is not None:
        teacher_config = served_config(teacher, tokenizer, args)
    else:
        teacher_config = loading.read_teacher_config(_named(teacher), args)
    collator = setup.make_collator(student_tokenizer, tokenizer, config, teacher_config, args)
    return TeacherSource(key, teacher, tokenizer, urls, served, teacher_config, collator)


def _named(teacher: loading.Model | None) -> loading.Model:
    """One that is not behind a server, and so was given or named."""
    return loading.check_model(teacher, "teacher_model")


def _refuse_names(tokenizer: Any, args: CrossTokenizerGKDConfig) -> None:
    for name, value in _by_name(tokenizer, args).items():
        if isinstance(value, Mapping):
            raise ConfigError(
                f"`{name}` is a dictionary with {', '.join(map(repr, value))}, which is for several teachers, but "
                "there is one. Name them in a dictionary, too (`teacher_model` or `teacher_model_name_or_path`), or "
                "drop the names here."
            )


def _by_name(tokenizers: Any, args: CrossTokenizerGKDConfig) -> dict[str, Any]:
    """What has the names of several teachers, and none where there is one."""
    return {
        "teacher_processing_class": tokenizers,
        "args.teacher_server_url": args.teacher_server_url,
        "args.teacher_weights": args.teacher_weights,
    }


def _check_several(teachers: Mapping[str, Any], tokenizers: Any, args: CrossTokenizerGKDConfig) -> None:
    if not teachers or not all(isinstance(key, str) and key for key in teachers):
        raise ConfigError(
            f"The teachers are named {list(teachers)!r}, but each needs a name as text, as the dataset's "
            f"`{TEACHER_COLUMN}` column has it."
        )
    if lost := [
        key for key, model in teachers.items() if model is None and key not in (args.teacher_server_url or {})
    ]:
        raise ConfigError(
            f"Of the teachers {', '.join(teachers)}, {lost[0]!r} is None. Give its model, its name or its path."
        )
    for name, value in _by_name(tokenizers, args).items():
        if value is not None and (not isinstance(value, Mapping) or not value.keys() <= teachers.keys()):
            raise ConfigError(
                f"`{name}` is {list(value) if isinstance(value, Mapping) else type(value).__name__}, but with several "
                f"teachers it must be a dictionary with some of their names: {', '.join(teachers)}."
            )
    weights = args.teacher_weights or {}
    if weights.keys() == teachers.keys() and not any(weights.values()):
        raise ConfigError(
            f"`teacher_weights` is 0 for every teacher ({', '.join(weights)}), so there is nothing to learn. Give one "
            "of them a weight above 0."
        )
    _check_keys([*(args.teacher_server_url or {})])
    if (args.teacher_server_url or {}).keys() == teachers.keys():
        refuse_loading(args)
    refused = {
        "objective": args.objective not in ("auto", "chunk_rkl", "chunk_jsd"),
        "advantage_baseline": args.advantage_baseline == "position",
        "seq_kd": args.seq_kd,
        "offload_teacher": args.offload_teacher,
    }
    for name, is_refused in refused.items():
        if is_refused:
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` is defined for one teacher, but there are {len(teachers)}: "
                f"{', '.join(teachers)}. Use 'chunk_rkl' or 'chunk_jsd' and leave the rest at its "
                "default, or train with one teacher after the other."
            )


def _check_keys(served: Sequence[str]) -> None:
    """Refuse an API key that would go to the servers of two teachers, whose names differ in other characters only."""
    owners: dict[str, str] = {}
    for key in served:
        variable = key_variable(key)
        if owners.setdefault(variable, key) != key and variable in os.environ:
            raise ConfigError(
                f"The environment variable {variable} stands for the servers of both {owners[variable]!r} and "
                f"{key!r}, so it is not known whose API key it holds. Rename one of the teachers."
            )


def join_collators(sources: Sequence[TeacherSource]) -> PromptCollator:
    """What reads the rows of all teachers."""
    first = sources[0].collator
    if len(sources) == 1 and not sources[0].key:
        return first
    settings = {item.name: getattr(first, item.name) for item in fields(first)}
    return TeachersCollator(**settings, collators={source.key: source.collator for source in sources})


@dataclass
class TeachersCollator(PromptCollator):
    """Has each row tokenized for the teacher that it names, and adds `teacher_numbers`.

    Args:
        collators: By the names of the teachers; their order numbers them.
    """

    collators: dict[str, PromptCollator] = field(default_factory=dict)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """See [`PromptCollator`]."""
        numbers = {key: number for number, key in enumerate(self.collators)}
        named = [numbers[self._name(example)] for example in examples]
        return {**super().__call__(examples), "teacher_numbers": torch.tensor(named)}

    def tokenize_row(self, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """See [`PromptCollator`]."""
        return self.of(example).tokenize_row(example)

    def completion(self, example: Mapping[str, Any], prompt: Sequence[int]) -> list[int]:
        """See [`PromptCollator`]."""
        return self.of(example).completion(example, prompt)

    @property
    def parts(self) -> Mapping[str, PromptCollator]:
        """See [`PromptCollator`]."""
        return self.collators

    def of(self, example: Mapping[str, Any]) -> PromptCollator:
        """What tokenizes for the teacher of a row.

        Raises:
            DataError: If it names none.
        """
        return self.collators[self._name(example)]

    def _name(self, example: Mapping[str, Any]) -> str:
        name = example.get(TEACHER_COLUMN)
        if not isinstance(name, str) or name not in self.collators:
            found = f"has {name!r} in its" if TEACHER_COLUMN in example else f"has {', '.join(example)}, but no"
            raise DataError(
                f"A row {found} `{TEACHER_COLUMN}` column, but the teachers are {', '.join(self.collators)}. With "
                "several teachers each row names the one that scores it."
            )
        return name
