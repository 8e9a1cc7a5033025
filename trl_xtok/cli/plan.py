"""`trl-xtok plan`: peak GPU memory of a run, and what fits on a GPU."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser("plan", help="peak GPU memory of a run, and what fits on a GPU")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    raise NotImplementedError
