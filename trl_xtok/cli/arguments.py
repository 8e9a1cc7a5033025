"""The parser of all commands: it says what an unknown flag was probably meant to be."""

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


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
            self.error(describe_unknown(unknown, self._option_string_actions))
        return parsed, unknown


def describe_unknown(unknown: Sequence[str], known: Iterable[str]) -> str:
    """The first argument that nobody knows, and the flag that comes closest to it."""
    name = unknown[0].partition("=")[0]
    close = get_close_matches(name, [flag for flag in known if flag.startswith("--")], n=1)
    return f"unknown argument {name!r}." + (f" Did you mean {close[0]!r}?" if close else "")
