"""Tokenizers and configurations by name or folder, as the commands take them."""

from pathlib import Path
from typing import Any

from ..errors import ModelError, TokenizerError


# One of them is in every folder with a fast tokenizer, or with what it can be made from.
_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """A tokenizer, from a folder or from the Hub or its cache.

    Raises:
        FileNotFoundError: If `name` is the path of a folder that is not there.
        TokenizerError: If there is no tokenizer, or it is not a fast one.
    """
    folder = _check_folder(name)
    if folder is not None and not any((folder / file).exists() for file in _FILES):
        raise TokenizerError(
            f"The folder {name!r} holds no tokenizer: there is none of {', '.join(_FILES)} in it. Save one there with "
            "`tokenizer.save_pretrained`, or name the folder of the base model if this is an adapter."
        )

    from transformers import AutoTokenizer

    from ..alignment.token_bytes import token_bytes

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise TokenizerError(
            f"The tokenizer of {name!r} cannot be loaded: {_reason(error)} {_advice(name)}"
        ) from error
    token_bytes(tokenizer)
    return tokenizer


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, from a folder or from the Hub or its cache; no weights.

    Raises:
        FileNotFoundError: If `name` is the path of a folder that is not there.
        ModelError: If there is no configuration.
    """
    folder = _check_folder(name)
    if folder is not None and not (folder / "config.json").exists():
        raise ModelError(
            f"The folder {name!r} holds no `config.json`, so the shapes of the model are not known. Name the "
            "folder of a whole model; for an adapter, that of its base model."
        )

    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(
            f"The configuration of {name!r} cannot be loaded: {_reason(error)} {_advice(name)}"
        ) from error


def _check_folder(name: str) -> Path | None:
    """The folder, if it is one; a name that can only be a path must be one."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise FileNotFoundError(
            f"There is no folder {name!r}. Give the folder of a model, or its name on the Hub, such as "
            "'Qwen/Qwen3-8B'."
        )
    return None


def _reason(error: Exception) -> str:
    """The first sentence of what may be a page of advice."""
    return str(error).strip().split("\n")[0]


def _advice(name: str) -> str:
    return (
        f"If {name!r} is a folder, check its path; if it is a model of the Hub, check the name, your login and your "
        "connection. Without a connection it has to be in the cache."
    )
