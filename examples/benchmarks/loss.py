"""Loss alone: time and peak memory of forward and backward, side by side with TRL's.

    python -m examples.benchmarks.loss
    python -m examples.benchmarks.loss --tokens 32 --hidden 16 --only chunk_rkl products --output out

All cases of one size get the same random hidden states and heads, in float32, each in a process of its own. The
models around the loss are not part of it. "times the products" compares with the case's matrix products alone, 64
rows at a time, measured in turn with it (for products, with themselves: this is the noise). GOLD needs real tokens
and so at least the default vocabularies; its cost grows with the square of the length of a completion, so
`--sequences` says how many of them the tokens belong to. Needs the repository's tests for their tokenizers; the bar
chart is left out if matplotlib is not installed.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch

from .arguments import at_least_one, positive, share
from .inputs import Sizes
from .loss_cases import CASES, GOLD
from .report import machine_line, markdown_table, number


HEADER = ("case", "tokens", "hidden", "seconds", "times the products", "peak MiB above the inputs", "times GOLD")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Result:
    """What one case took at one size.

    Attributes:
        case: Name of the case.
        tokens: Positions that were trained on.
        hidden: Width of the hidden states.
        seconds: Of forward and backward.
        products: Seconds of its matrix products alone.
        peak: Bytes in use above the inputs.
    """

    case: str
    tokens: int
    hidden: int
    seconds: float
    products: float
    peak: float

    @property
    def times(self) -> float:
        """How many times as long as its products it takes."""
        return self.seconds / self.products


def read_arguments() -> argparse.Namespace:
    """What is measured, and where the chart goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=at_least_one, nargs="+", default=[1024, 2048])
    parser.add_argument("--hidden", type=at_least_one, nargs="+", default=[512, 1024])
    parser.add_argument("--student-vocab", type=at_least_one, default=128_256)
    parser.add_argument("--teacher-vocab", type=at_least_one, default=151_936)
    parser.add_argument("--sequences", type=at_least_one, default=8, help="completions that the tokens belong to")
    parser.add_argument("--beta", type=share, default=0.5, help="of all Jensen-Shannon divergences")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument(
        "--repeats", type=at_least_one, default=3, help="the shortest counts; none starts after 30 seconds"
    )
    parser.add_argument("--limit", type=positive, default=1800.0, help="seconds after which a case is given up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for benchmark_loss.svg")
    arguments = parser.parse_args()
    for tokens in arguments.tokens:
        if tokens % arguments.sequences:
            parser.error(f"{tokens} tokens cannot be cut into {arguments.sequences} completions of equal length.")
    return arguments


def measure(case: str, sizes: Sizes, arguments: argparse.Namespace) -> Result | None:
    """Measure a case in a process of its own; prints how it went, and returns `None` if it was skipped."""
    request = {"case": case, "repeats": arguments.repeats, "sizes": asdict(sizes)}
    command = [sys.executable, "-m", "examples.benchmarks.measure", json.dumps(request)]
    label = f"{case}, {sizes.tokens} tokens, hidden {sizes.hidden}"
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
            timeout=arguments.limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _skip(label, f"it took longer than {arguments.limit:.0f} seconds")
    if done.returncode < 0:
        return _skip(label, f"its process was ended by signal {-done.returncode}, most likely for want of memory")
    done.check_returncode()
    answer = json.loads(done.stdout.splitlines()[-1])
    if "skipped" in answer:
        return _skip(label, answer["skipped"])
    result = Result(case, sizes.tokens, sizes.hidden, **answer)
    seconds, mebibytes = number(result.seconds), number(result.peak / MIB)
    print(
        f"{label}: {seconds} s, {number(result.times)} times the products, {mebibytes} MiB",
        file=sys.stderr,
        flush=True,
    )
    return result


def _skip(label: str, reason: str) -> None:
    print(f"{label}: skipped, {reason}", file=sys.stderr, flush=True)


def measure_all(arguments: argparse.Namespace) -> list[Result]:
    """All cases at all sizes, one after the other."""
    results = []
    for tokens, hidden, case in product(arguments.tokens, arguments.hidden, arguments.only):
        student_vocab = arguments.student_vocab
        sizes = Sizes(
            tokens=tokens,
            hidden=hidden,
            student_vocab=student_vocab,
            teacher_vocab=student_vocab if CASES[case].one_vocabulary else arguments.teacher_vocab,
            sequences=arguments.sequences,
            beta=arguments.beta,
            device=arguments.device,
        )
        if (result := measure(case, sizes, arguments)) is not None:
            results.append(result)
    return results


def table(results: Sequence[Result]) -> str:
    """The Markdown table; a dash where GOLD was not measured."""
    golds = {(result.tokens, result.hidden): result.seconds for result in results if result.case == GOLD}

    def times_gold(result: Result) -> str:
        base = golds.get((result.tokens, result.hidden))
        return number(None if base is None else result.seconds / base)

    rows = [
        [
            result.case,
            str(result.tokens),
            str(result.hidden),
            number(result.seconds),
            number(result.times),
            number(result.peak / MIB),
            times_gold(result),
        ]
        for result in results
    ]
    return markdown_table(HEADER, rows)


def draw(results: Sequence[Result], path: Path) -> None:
    """Two panels of bars, seconds and MiB, for the largest size that was measured."""
    from matplotlib import pyplot

    tokens, hidden = max((result.tokens, result.hidden) for result in results)
    # Bars are drawn from below.
    shown = [result for result in reversed(results) if (result.tokens, result.hidden) == (tokens, hidden)]
    names = [result.case for result in shown]
    colours = [_colour(name) for name in names]
    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(10, 1 + 0.35 * len(shown)))
    for axes, title, values in (
        (left, "seconds", [result.seconds for result in shown]),
        (right, "peak MiB above the inputs", [max(result.peak / MIB, 0.1) for result in shown]),
    ):
        axes.set_xscale("log")
        # From a power of ten, and with room for the numbers at the right.
        axes.set_xlim(10 ** math.floor(math.log10(min(values))), 4 * max(values))
        axes.bar_label(axes.barh(names, values, color=colours), [number(value) for value in values], padding=3)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"One loss, forward and backward: {tokens} tokens, hidden size {hidden}", fontsize=11)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _colour(case: str) -> str:
    return "#999999" if case.startswith("products") else "#f58518" if case.startswith("TRL") else "#4c78a8"


def main() -> None:
    """Measure, print the table, draw the chart."""
    arguments = read_arguments()
    results = measure_all(arguments)
    print(f"{machine_line(arguments.device)}. float32, {arguments.sequences} completions, beta {arguments.beta}.\n")
    print(table(results))
    if not results:
        return
    path = arguments.output / "benchmark_loss.svg"
    try:
        draw(results, path)
    except ModuleNotFoundError as missing:
        print(f"\nThe bar chart is left out, since {missing.name} is not installed.", file=sys.stderr)


if __name__ == "__main__":
    main()
