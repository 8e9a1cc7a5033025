"""The command line: `trl-xtok COMMAND`.

Each command is a module with `add_parser(commands)`, which adds its parser and sets `run`, a function of the parsed
arguments that returns the exit status. These modules import nothing heavy before `run` is called: torch takes seconds,
and `trl-xtok --help` needs none of it.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from ..errors import XTokError
from . import audit, demo_command, env, gkd, plan, report
from .arguments import CommandParser


# In the order of the help: what is used first.
_COMMANDS = (gkd, audit, plan, report, demo_command, env)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 1 for an input that was refused, 2 for wrong usage."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = CommandParser(
        prog="trl-xtok",
        description="On-policy distillation between models with different tokenizers.",
        epilog="`trl-xtok COMMAND --help` explains a command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    # The arguments of `gkd` are those of its dataclasses, which import torch.
    raw = argv[1:] if argv[:1] == ["gkd"] else []
    args = parser.parse_args(argv[: len(argv) - len(raw)], Namespace(raw=raw))
    try:
        return args.run(args)
    except (XTokError, FileNotFoundError) as error:
        # Of several processes each says what it found.
        rank = f" [rank {os.environ['RANK']}]" if "RANK" in os.environ else ""
        print(f"trl-xtok {args.command}{rank}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"trl-xtok {args.command}: interrupted", file=sys.stderr)
        return 130
