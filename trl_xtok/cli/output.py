"""Files that the commands write where `--output` says."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def write_output(path: Path, content: str, *, example: str) -> None:
    """Write a file, with the folders above it.

    Args:
        path: Where to.
        content: The text.
        example: What the file could be called.

    Raises:
        ConfigError: If it cannot be written there.
    """
    if path.is_dir():
        raise ConfigError(f"`--output {path}` is a folder. Name a file in it, for example {path / example}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}). Give another file with `--output`.") from error


def as_text(show: Callable[[Any], None], width: int) -> str:
    """What `show` prints on a console of rich, without colours."""
    from rich.console import Console

    show(Console(file=(written := io.StringIO()), width=width))
    return written.getvalue()
