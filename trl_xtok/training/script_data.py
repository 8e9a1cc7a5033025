"""The datasets that the command line names: on the Hub, in a folder, in a file, or several as a mixture."""

from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from trl.scripts.utils import get_dataset

from ..errors import ConfigError, DataError
from ..sources import data_not_loaded
from .script_arguments import Arguments


_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".txt": "text",
}
# What `save_to_disk` writes.
_SAVED = ("dataset_dict.json", "state.json")


def load_datasets(arguments: Arguments) -> tuple[Any, Any]:
    """The dataset to train on, and the one to evaluate on if there is to be an evaluation.

    Raises:
        ConfigError: If a stream has no end and the arguments do not say when to stop.
        DataError: If one of them is not there or cannot be read.
    """
    script, args, mixture = arguments.script, arguments.training, arguments.mixture
    is_streamed = mixture.streaming or script.dataset_streaming
    if is_streamed and args.max_steps <= 0:
        raise ConfigError("A stream does not say how long it is. Set `--max_steps`.")
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    try:
        if mixture.datasets:
            splits = get_dataset(mixture)
            return splits["train"], _take(splits, script.dataset_test_split) if evaluates else None
        train = _load(arguments, script.dataset_train_split)
        return train, _load(arguments, script.dataset_test_split) if evaluates else None
    except DataError:
        raise
    except (DatasetsError, OSError, TypeError, ValueError) as error:
        names = [source.path for source in mixture.datasets] or [script.dataset_name]
        raise DataError(data_not_loaded(names, error, _BUILDERS)) from error


def is_local(name: str) -> bool:
    """Whether a dataset is a file or a folder of this machine."""
    return Path(name).exists()


def _load(arguments: Arguments, split: str) -> Any:
    script, path = arguments.script, Path(arguments.script.dataset_name)
    if path.is_dir() and any((path / name).is_file() for name in _SAVED):
        saved = load_from_disk(str(path))
        return _take(saved if isinstance(saved, DatasetDict) else {"train": saved}, split)
    source: dict[str, Any] = {"path": str(path) if path.exists() else script.dataset_name}
    if path.is_file():
        source = {"path": _builder(path), "data_files": str(path)}
        if split != "train" and "[" not in split:
            return _take({"train": None}, split)
    return load_dataset(**source, name=script.dataset_config, split=split, streaming=script.dataset_streaming)


def _builder(path: Path) -> str:
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".zst", ".bz2", ".xz")), "")
    if suffix not in _BUILDERS:
        raise DataError(
            f"The file {str(path)!r} is of a kind that is not read here. Give one of {', '.join(_BUILDERS)}, or a "
            "folder of such files."
        )
    return _BUILDERS[suffix]


def _take(splits: Any, name: str) -> Any:
    if name not in splits:
        raise DataError(
            f"The dataset has the splits {', '.join(splits)}, and none of them is {name!r}. Name another with "
            "`--dataset_train_split` or `--dataset_test_split`, or leave out the evaluation (`--eval_strategy no`)."
        )
    return splits[name]
