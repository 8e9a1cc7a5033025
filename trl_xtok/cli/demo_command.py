"""The arguments of `trl-xtok demo`, apart from what it runs, which imports torch."""

import argparse
from typing import Any

from ..errors import ConfigError


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "demo",
        help="distil Gemma 3 270M into SmolLM2 135M on this machine",
        description="Distil Gemma 3 270M (4-bit) into SmolLM2-135M-Instruct (LoRA) on about 200 short prompts, and "
        "show what changed on held-out ones. Needs no network; trains for about ten minutes on two CPU cores.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of sampling, data order and LoRA (default: %(default)s)"
    )
    parser.add_argument("--max_steps", type=int, default=None, help="optimizer steps (default: those of the recipe)")
    parser.add_argument(
        "--output_dir", default="outputs/demo", help="folder for the adapter and the figures (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    for name, least in {"seed": 0, "max_steps": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"`--{name}` must be at least {least}, got {value}.")
    from .demo import run_demo

    return run_demo(args.output_dir, seed=args.seed, max_steps=args.max_steps)
