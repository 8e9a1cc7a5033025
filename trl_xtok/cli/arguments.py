"""The parser of all commands: what is wrong is said in a line, and what an unknown flag was probably meant to be."""

import argparse
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations, whose command refuses what it does not know, with a suggestion."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse everything or leave: the parser of a command would hand what it does not know to the one above."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            self.error(f"unknown argument {name!r}.{did_you_mean(name, self._option_string_actions)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        """Leave with status 2, without a usage that is longer than what is wrong."""
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists all arguments.\n")


def did_you_mean(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """A sentence with the flags that `name` begins, else with the one that comes closest to it; empty without any.

    Args:
        name: What nobody knows.
        known: Flags, of which those without hyphens in their name are suggested.
        prefix: What the reader writes before a name.
    """
    flags = [flag for flag in known if flag.startswith("--") and "-" not in flag[2:]]
    written = f"--{name.lstrip('-').replace('-', '_')}"
    begun = [flag for flag in flags if flag.startswith(f"{written}_")][:3]
    close = begun or get_close_matches(written, flags, n=1, cutoff=0.75)
    return f" Did you mean {' or '.join(repr(prefix + flag[2:]) for flag in close)}?" if close else ""
