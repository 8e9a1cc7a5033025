"""`trl-xtok audit`: what to expect of a pair of tokenizers."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser("audit", help="what to expect of a pair of tokenizers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    raise NotImplementedError
