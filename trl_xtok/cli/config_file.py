"""The file behind `--config`, looked at before anything heavy is imported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError


_FLAG = "--config"


def read_config_file(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments with `--config=FILE` as two of them, and what stands in the file.

    Raises:
        ConfigError: If it is not there, or no YAML mapping.
    """
    parts = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith(f"{_FLAG}=") else [arg])]
    if _FLAG not in parts:
        return parts, {}
    path = Path(*parts[parts.index(_FLAG) + 1 :][:1])
    if parts.count(_FLAG) > 1 or parts[-1] == _FLAG:
        raise ConfigError(f"`{_FLAG}` takes the path of one YAML file, once. Put everything into one file.")
    if not path.is_file():
        raise ConfigError(f"`{_FLAG} {path}`: there is no such file. Give the path of a YAML file.")
    return parts, _read(path)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{_FLAG} {path}` is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"`{_FLAG} {path}` holds {config!r:.100}, but must be a YAML mapping: one `name: value` on each line."
        )
    if not isinstance(config.get("env", {}), dict):
        raise ConfigError(
            f"`env` in {path} is {config['env']!r:.100}, but must be a mapping of environment variables to values."
        )
    return config
