"""Runs -> tables and a chart."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from examples.benchmarks.report import markdown_table, number

from .arms import ARMS
from .runs import FIGURES, Run


HEADER = ("arm", "rate", "GFLOP", "accuracy", "by seed", "reverse KL per byte", "coverage", "non-canonical")
HEADER += ("stop rate", "tokens")


def by_arm(runs: Sequence[Run]) -> dict[tuple[str, float], list[Run]]:
    """The runs of each arm and rate, in the order of the first."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.arm, run.learning_rate), []).append(run)
    return groups


def tables(runs: Sequence[Run]) -> str:
    """One row per arm: means over its seeds at the end of the runs."""
    start = mean(run.accuracies[0] for run in runs)
    rows = [
        [
            arm,
            f"{rate:g}",
            number(mean(run.flops[-1] for run in group) / 1e9),
            f"{mean(run.accuracies[-1] for run in group):.3f}",
            " ".join(f"{run.accuracies[-1]:.2f}" for run in group),
            *(f"{mean(run.figures[name] for run in group):.3f}" for name in FIGURES),
        ]
        for (arm, rate), group in by_arm(runs).items()
    ]
    return f"Accuracy before: {start:.3f}.\n\n{markdown_table(HEADER, rows)}"


def accuracy_at(run: Run, flops: float) -> float:
    """Accuracy after so many operations, on straight lines between the checkpoints; at most the last one."""
    points = list(zip(run.flops, run.accuracies, strict=True))
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= flops <= x1:
            return y0 + (y1 - y0) * (flops - x0) / max(x1 - x0, 1e-9)
    return points[-1][1]


def draw(runs: Sequence[Run], task: str, path: Path) -> None:
    """Accuracy against operations: the mean of the seeds, and their spread."""
    from matplotlib import pyplot

    groups = by_arm(runs)
    columns = 3
    lines = -(-len(groups) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, sharex=True, sharey=True, figsize=(10, 1 + 1.7 * lines), squeeze=False
    )
    reference = next((group for (arm, _), group in groups.items() if ARMS[arm].reads), None)
    for panel, ((arm, _), group) in zip(axes.flat, groups.items(), strict=False):
        for drawn, colour in ((reference, "#999999"), (group, "#f58518" if arm.startswith("TRL") else "#4c78a8")):
            if drawn is not None:
                _line(panel, drawn, colour)
        panel.set_title(arm, fontsize=8)
        panel.set_ylim(0, 1)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(axes.flat)[len(groups) :]:
        panel.set_visible(False)
    figure.suptitle(f"{task}: accuracy against GFLOP (grey: SFT on the teacher's texts; band: all seeds)", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _line(panel, group: Sequence[Run], colour: str) -> None:
    end = min(run.flops[-1] for run in group)
    places = [end * step / 60 for step in range(61)]
    values = [[accuracy_at(run, place) for run in group] for place in places]
    giga = [place / 1e9 for place in places]
    panel.plot(giga, [mean(value) for value in values], color=colour)
    panel.fill_between(giga, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.25, linewidth=0)
