"""The command line: `trl-xtok COMMAND`."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 1 for an input that was refused."""
    parser = argparse.ArgumentParser(
        prog="trl-xtok", description="On-policy distillation between models with different tokenizers."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="distil Gemma 3 270M into SmolLM2 135M on this machine",
        description="Distil Gemma 3 270M (4-bit) into SmolLM2-135M-Instruct (LoRA) on about 200 short prompts, and "
        "show what changed on held-out ones. Needs no network; trains for about ten minutes on two CPU cores.",
    )
    demo.add_argument(
        "--seed", type=int, default=0, help="seed of sampling, data order and LoRA (default: %(default)s)"
    )
    demo.add_argument("--max_steps", type=int, default=None, help="optimizer steps (default: those of the recipe)")
    demo.add_argument(
        "--output_dir", default="outputs/demo", help="folder for the adapter and the figures (default: %(default)s)"
    )
    args = parser.parse_args(argv)

    # Torch takes seconds to import, and the help needs none of it.
    from .demo import run_demo

    return run_demo(args.output_dir, seed=args.seed, max_steps=args.max_steps)
