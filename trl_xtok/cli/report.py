"""`trl-xtok report`: an HTML page about a finished run."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser("report", help="an HTML page about a finished run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    raise NotImplementedError
