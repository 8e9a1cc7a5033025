"""Why a model or a dataset cannot be loaded from where its name points, in a sentence or two.

Libraries answer a wrong path with a page of advice about the Hub.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal


# One of them is in every folder with a fast tokenizer, or with what it can be made from.
_FILES = {
    "tokenizer": (
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model"),
    ),
    "configuration": ("config.json",),
}
_GIVE = "Give the folder of a model, or its name on the Hub, such as 'Qwen/Qwen3-8B'."


def in_one_line(error: Exception) -> str:
    """What a library said, as one paragraph that ends."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "!", "?", ":")) else f"{text}."


def not_loaded(
    what: Literal["tokenizer", "configuration"],
    name: str,
    error: Exception,
    *,
    gguf_file: str | None = None,
    subfolder: str | None = None,
) -> str:
    """What to say where the tokenizer or the configuration of a model could not be loaded.

    Args:
        what: Which of the two.
        name: The folder of the model, or its name on the Hub.
        error: What the library said.
        gguf_file: The file in it that was to be read, if there was one.
        subfolder: The folder in it that was to be read, if there was one.
    """
    path = Path(name).expanduser()
    if not name or path.is_file():
        found = f"{name!r} is a file" if name else "The name of the model is empty"
        return f"{found}. {_GIVE}"
    if not path.is_dir() and _is_path(name):
        return f"There is no folder {name!r}. {_GIVE}"
    folder = path / (subfolder or "")
    if path.is_dir() and not folder.is_dir():
        return f"There is no folder {subfolder!r} in {name!r}. Check `subfolder`."
    if path.is_dir() and gguf_file is not None and not (folder / gguf_file).exists():
        return f"There is no file {gguf_file!r} in {name!r}. Check `gguf_file`."
    if path.is_dir() and gguf_file is None and not any((folder / file).exists() for file in _FILES[what]):
        return (
            f"The folder {name if folder == path else str(folder)!r} holds no {what}: there is none of "
            f"{', '.join(_FILES[what])} in it. Give the folder of a whole model; for an adapter, that of its base "
            "model."
        )
    return (
        f"The {what} of {name!r} cannot be loaded: {in_one_line(error)} Check the name or path (and your login and "
        "connection, if it is a model of the Hub; without a connection it has to be in the cache)."
    )


def data_not_loaded(names: Sequence[str], error: Exception, suffixes: Collection[str]) -> str:
    """What to say where datasets could not be loaded.

    Args:
        names: Each a file, a folder, or a name on the Hub.
        error: What the library said.
        suffixes: Those of files that can be read.
    """
    for path, name in ((Path(name), name) for name in names):
        if not path.exists() and (_is_path(name) or path.suffix in suffixes):
            return f"There is no file or folder {name!r} with data. Check the path."
        if path.is_dir() and not any(suffix in suffixes for file in path.rglob("*") for suffix in file.suffixes):
            return f"The folder {name!r} holds no data: no file in it ends in {', '.join(suffixes)}. Check the path."
    return (
        f"The dataset {', '.join(map(repr, names))} cannot be loaded: {in_one_line(error)} Check the name or path and "
        "the split (and your login and connection, if it is a dataset of the Hub)."
    )


def _is_path(name: str) -> bool:
    """Whether this cannot be a name on the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
