"""`trl-xtok report`: an HTML page about a run, and figures for papers."""

import argparse
from pathlib import Path
from typing import Any

from .output import write_output


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "report",
        help="an HTML page about a run: curves, completions, credit by token",
        description="Make one HTML page of what a run left in its folder, finished or not: curves, completions before "
        "and after, and completions by chunks with the advantage of each token (the last two for runs with "
        "`--log_completions`). The page needs no network, and nothing beside it.",
    )
    parser.add_argument(
        "run_dir", metavar="RUN_DIR", type=Path, help="the run's output_dir, or one of its checkpoints"
    )
    parser.add_argument(
        "--output", type=Path, default=None, help="the file to write (default: report.html in RUN_DIR)"
    )
    parser.add_argument(
        "--figures",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="also draw curves and chunks as SVG and PDF into this folder, with Matplotlib",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from ..report.run import read_run
    from ..report.run_page import run_page

    found = read_run(args.run_dir)
    output = args.output or args.run_dir / "report.html"
    write_output(output, run_page(found), example="report.html")
    print(f"Report: {output}")
    for note in found.notes:
        print(f"Note: {note}")
    if args.figures is not None:
        from ..report.figures import write_figures

        for path in write_figures(found, args.figures):
            print(f"Figure: {path}")
    return 0
