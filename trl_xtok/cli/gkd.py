"""`trl-xtok gkd`: train from the command line."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser("gkd", help="distil a teacher into a student", add_help=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train."""
    raise NotImplementedError
