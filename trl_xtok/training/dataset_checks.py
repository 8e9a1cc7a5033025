"""What is done with datasets before the first step: rows are read, and conversations are split into their turns.

A bad row shows then and not after hours. Datasets are stored as they were given, unless there is something to split.
"""

import heapq
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError, TemplateError
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator
from .dataset_formats import (
    ASSISTANT_TURN,
    TEACHER_COLUMN,
    has_turns,
    is_conversational_prompt,
    read_completion,
    read_prompt,
    split_turns,
)


# So many of the longest prompts are tokenized before the first step: to tokenize them all would take minutes.
_LONGEST = 32


def prepare_datasets(
    train_dataset: Any, eval_dataset: Any, collator: PromptCollator, args: CrossTokenizerGKDConfig, data_collator: Any
) -> tuple[Any, Any]:
    """Split the datasets into their turns if `args` say so, and read the prompts of every dataset.

    Args:
        train_dataset: The training dataset.
        eval_dataset: An evaluation dataset, several by name, or `None`.
        collator: Tokenizes for both models.
        args: Say which assistant turns are trained on.
        data_collator: The caller's own collator, which may read any columns, or `None`.

    Raises:
        ConfigError: If the training dataset has no turns to split.
        DataError: If a dataset is missing or empty, or a prompt cannot be read or is too long.
        TemplateError: If a chat template is needed and missing.
    """
    if train_dataset is None:
        raise DataError(
            "`train_dataset` is required, because rollouts start from its prompts. Pass a dataset with a `prompt`, a "
            "`messages` or a `conversations` column."
        )
    _check_container("train_dataset", train_dataset)
    for name, dataset in _named("eval_dataset", eval_dataset):
        _check_container(name, dataset)
    train, evaluation = split_datasets(train_dataset, args), split_datasets(eval_dataset, args)
    own_collators = (None, None) if data_collator else (collator, evaluation_collator(collator, args))
    first = _check("train_dataset", train, own_collators[0], args)
    if args.assistant_turns == "all" and ASSISTANT_TURN not in first:
        raise ConfigError(
            f"`assistant_turns='all'` has no effect on `train_dataset`, whose columns are {', '.join(first)}. "
            "Leave it at 'last', or give conversations with their answers, for example as `messages`."
        )
    for name, dataset in _named("eval_dataset", evaluation):
        _check(name, dataset, own_collators[1], args)
    return train, evaluation


def evaluation_collator(
    collator: PromptCollator, args: CrossTokenizerGKDConfig, *, references: bool = False
) -> PromptCollator:
    """What reads the rows of an evaluation, which may be about the dataset's completions where training is not."""
    text_field = args.dataset_text_field if args.eval_on_dataset else None
    completes = args.eval_on_dataset
    return replace(collator, with_completions=completes, with_references=references, text_field=text_field)


def prepare_evaluation(datasets: Any, collator: PromptCollator | None, args: CrossTokenizerGKDConfig) -> Any:
    """The same for a dataset, or several by name, that an evaluation is given.

    Args:
        datasets: One or several.
        collator: What reads the rows of an evaluation; `None` leaves them to the caller's own.
        args: Say which assistant turns are answered.

    Raises:
        DataError: If a dataset is empty, or a prompt cannot be read or is too long.
        TemplateError: If a chat template is needed and missing.
    """
    for name, dataset in _named("eval_dataset", datasets):
        _check_container(name, dataset)
    split = split_datasets(datasets, args)
    for name, dataset in _named("eval_dataset", split):
        _check(name, dataset, collator, args)
    return split


def refuse_short_stream(batches: int, needed: int, step: int) -> None:
    """Refuse a stream that ends within its first optimizer step.

    Args:
        batches: What was left of it.
        needed: For one step.
        step: Optimizer steps that were taken.

    Raises:
        DataError: If it does.
    """
    if batches and not step:
        raise DataError(
            f"The stream in `train_dataset` ends after {batches} batches, but one optimizer step takes {needed} "
            "(`gradient_accumulation_steps`). Lower that or `per_device_train_batch_size`, or give a longer stream."
        )


def split_datasets(datasets: Any, args: CrossTokenizerGKDConfig) -> Any:
    """One row for each assistant turn, if `args` say so; the very same object if there is nothing to split.

    Args:
        datasets: A dataset, several by name, or what stands for one that is known already.
        args: Say which assistant turns are trained on.

    Raises:
        DataError: If reading the rows twice may give other rows.
    """
    if args.assistant_turns == "last":
        return datasets
    if isinstance(datasets, Mapping):
        split = {name: split_datasets(dataset, args) for name, dataset in datasets.items()}
        return datasets if all(split[name] is dataset for name, dataset in datasets.items()) else split
    if not isinstance(datasets, Dataset | IterableDataset) or not has_turns(_first_row(datasets)):
        return datasets
    if isinstance(datasets, IterableDataset):
        return datasets.map(_split_batch, batched=True, batch_size=1)
    if datasets.format["type"] == "custom":
        raise DataError(
            "The dataset has a transform (`with_transform`), and `assistant_turns='all'` would keep what it makes of "
            "each row once. Apply it with `Dataset.map`, or give rows of one turn each."
        )
    with args.main_process_first(desc="splitting conversations into turns"):
        return datasets.map(_split_batch, batched=True, desc="Splitting conversations into turns")


def _split_batch(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    examples = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    rows = [row for example in examples for row in split_turns(example)]
    return {name: [row[name] for row in rows] for name in [*batch, ASSISTANT_TURN]}


def _named(argument: str, datasets: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(datasets, Mapping):
        yield from ((f"{argument}[{name!r}]", dataset) for name, dataset in datasets.items())
    elif datasets is not None:
        yield argument, datasets


def _check(
    name: str, dataset: Dataset | IterableDataset, collator: PromptCollator | None, args: CrossTokenizerGKDConfig
) -> Mapping[str, Any]:
    """Refuse what cannot be read; return the first row."""
    first = _first_row(dataset)
    if not first:
        raise DataError(f"`{name}` is empty, so there are no prompts to start from. Check its split and filters.")
    _check_lengths(name, dataset, args)
    if collator is not None:
        _check_rows(name, dataset, first, collator)
    return first


def _check_lengths(name: str, dataset: Dataset | IterableDataset, args: CrossTokenizerGKDConfig) -> None:
    """Refuse a way of sampling that needs lengths, where there are none: Transformers would look for `input_ids`."""
    strategy, is_train = args.train_sampling_strategy, name == "train_dataset"
    if strategy not in ("group_by_length", "batch_rebalance") or not (is_train or strategy == "group_by_length"):
        return
    if isinstance(dataset, IterableDataset):
        if is_train:
            raise ConfigError(
                f"`train_sampling_strategy={strategy!r}` has no effect on `{name}`, which is a stream and is read in "
                "its own order. Leave it out, or give a `datasets.Dataset`."
            )
    elif args.length_column_name not in dataset.column_names:
        raise ConfigError(
            f"`train_sampling_strategy={strategy!r}` needs the lengths of the rows, but `{name}` has the columns "
            f"{', '.join(dataset.column_names)} and none named {args.length_column_name!r} (`length_column_name`). "
            "Add it, for example with `dataset.map(lambda row: {'length': len(row['prompt'])})`."
        )


def _check_container(name: str, dataset: Any) -> None:
    if not isinstance(dataset, Dataset | IterableDataset):
        splits = f" with the splits {list(dataset)}; pass one of them" if isinstance(dataset, Mapping) else ""
        raise DataError(
            f"`{name}` is a {type(dataset).__name__}{splits}. It must be a `datasets.Dataset` or `IterableDataset`; "
            "`Dataset.from_list` makes one of a list of dictionaries."
        )


def _first_row(dataset: Dataset | IterableDataset) -> Mapping[str, Any]:
    return next(iter(dataset), {})


def _check_rows(
    name: str, dataset: Dataset | IterableDataset, first: Mapping[str, Any], collator: PromptCollator
) -> None:
    completes = collator.with_completions
    first = collator.split_text(first) if completes else first
    if is_conversational_prompt(read_prompt(first)):
        own = collator.of(first)
        teacher_template = own.teacher_chat_template or own.teacher_tokenizer.chat_template
        _need_template("teacher", teacher_template, own.teacher_tokenizer, "teacher_chat_template_path")
        _need_template(
            "student", collator.student_tokenizer.chat_template, collator.student_tokenizer, "chat_template_path"
        )
    _tokenize(first, collator, completes)
    # A stream may be endless, and reading it takes as long as training on it.
    if isinstance(dataset, Dataset):
        for teacher, part in collator.parts.items():
            rows = _rows_by_length(name, dataset, collator, completes)
            of_part = ((length, number, row) for length, number, row in rows if collator.of(row) is part)
            longest = heapq.nlargest(_LONGEST, of_part)
            if not longest and name == "train_dataset":
                raise DataError(
                    f"No row of `{name}` has {teacher!r} in its `{TEACHER_COLUMN}` column, so this teacher would have "
                    f"nothing to do. Leave it out, or check the names in the column."
                )
            for _, number, row in longest:
                with _at_row(name, number, row):
                    _tokenize(row, collator, completes)


def _tokenize(row: Mapping[str, Any], collator: PromptCollator, completes: bool) -> None:
    prompt, _ = collator.tokenize_row(row)
    if completes:
        collator.completion(row, prompt)


def _rows_by_length(
    name: str, dataset: Dataset, collator: PromptCollator, completes: bool
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    for number, row in enumerate(dataset):
        with _at_row(name, number, row):
            # One of several teachers that a row names must be there.
            collator.of(row)
            example = collator.split_text(row) if completes else row
            length = len(str(read_prompt(example))) + (len(str(read_completion(example))) if completes else 0)
            yield length, number, example


@contextmanager
def _at_row(name: str, number: int, row: Mapping[str, Any]) -> Iterator[None]:
    """Say in which row something was found."""
    try:
        yield
    except (DataError, TemplateError) as error:
        turns = " (with a row for each assistant turn)" if ASSISTANT_TURN in row else ""
        raise type(error)(f"Row {number} of `{name}`{turns}: {error}") from error


def _need_template(side: str, template: Any, tokenizer: PreTrainedTokenizerBase, argument: str) -> None:
    if template is None:
        raise TemplateError(
            f"The dataset is conversational, but the {side}'s tokenizer ({tokenizer.name_or_path!r}) has no chat "
            f"template, so the {side} cannot be shown the conversation. Set `{argument}` to a Jinja file, or use "
            "prompts in plain text."
        )
