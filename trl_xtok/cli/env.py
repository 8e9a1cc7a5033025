"""`trl-xtok env`: what to paste into a bug report."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "env",
        help="versions and hardware, to paste into a bug report",
        description="Print the versions of everything that matters and what the hardware can do, to paste into a bug "
        "report.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    raise NotImplementedError
