"""Texts to audit: given on the command line, from files, or from a dataset."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..sources import data_not_loaded


# Where completions stand, in the order in which a column is looked for.
_COLUMNS = ("completion", "messages", "conversations", "text", "prompt")
_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


def read_file(name: str) -> str:
    """The text of a file.

    Raises:
        DataError: If it is not there, is no UTF-8, or is empty.
    """
    path = Path(name)
    if not path.is_file():
        raise DataError(f"There is no file {name!r}. Give a text file to `--file`, or the text itself to `--text`.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"The file {name!r} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    if not text.strip():
        raise DataError(f"The file {name!r} is empty, so there is nothing to align. Give a file with text.")
    return text


def read_dataset(name: str, *, split: str, column: str | None, rows: int) -> dict[str, str]:
    """Texts of the first rows of a dataset, joined into one.

    Args:
        name: A file (JSON, JSON lines, CSV, Parquet, text), a folder that `save_to_disk` wrote, or a name on the Hub.
        split: Which split.
        column: Where the texts stand; `None` looks for a completion, else a conversation, a text or a prompt.
        rows: How many rows to read.

    Raises:
        DataError: If there is no such dataset, split or column, or no text in it.
    """
    dataset = _load(name, split)
    if column is None:
        column = next((known for known in _COLUMNS if known in dataset.column_names), None)
        if column is None:
            raise DataError(
                f"The dataset {name!r} has the columns {dataset.column_names}, none of which is known to hold texts "
                f"({', '.join(_COLUMNS)}). Say which one to read with `--column`."
            )
    if column not in dataset.column_names:
        raise DataError(
            f"The dataset {name!r} has no column {column!r}, only {dataset.column_names}. Choose with `--column`."
        )
    chosen = dataset.select(range(min(rows, len(dataset))))[column]
    texts = [text for value in chosen for text in _texts_of(value)]
    if not any(text.strip() for text in texts):
        raise DataError(
            f"The first {min(rows, len(dataset))} rows of {name!r} have no text in column {column!r}. Name another "
            "column with `--column`, or more rows with `--rows`."
        )
    return {f"{column} of {Path(name).name}": "\n".join(texts)}


def _load(name: str, split: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    # Its bars would stand before what is wrong.
    datasets.disable_progress_bars()
    path = Path(name)
    if path.is_file() and path.suffix not in _FORMATS:
        raise DataError(
            f"The file {name!r} ends in none of {', '.join(_FORMATS)}, so its format is not known. Give one that does."
        )
    try:
        if path.is_file():
            return datasets.load_dataset(_FORMATS[path.suffix], data_files=name, split=split)
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(data_not_loaded([name], error, _FORMATS)) from error
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise DataError(f"The dataset {name!r} has the splits {list(loaded)}, not {split!r}. Choose with `--split`.")
    return loaded[split]


def _texts_of(value: Any) -> Iterator[str]:
    """What an assistant wrote if the value is a conversation, else the text itself."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        for message in value:
            if isinstance(message, Mapping) and message.get("role", message.get("from")) in ("assistant", "gpt"):
                content = message.get("content", message.get("value"))
                if isinstance(content, str):
                    yield content
