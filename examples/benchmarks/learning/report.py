"""Runs -> tables and a chart."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from examples.benchmarks.report import markdown_table, number

from .arms import ARMS
from .runs import FIGURES, Run


HEADER = ("arm", "rate", "TFLOP", "SFT needs", "sampled", "by seed", "greedy", "reverse KL per byte", "coverage")
HEADER += ("non-canonical", "stop rate", "tokens")


def by_arm(runs: Sequence[Run]) -> dict[tuple[str, float], list[Run]]:
    """The runs of each arm and rate, in the order of the first."""
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.arm, run.learning_rate), []).append(run)
    return groups


def tables(runs: Sequence[Run]) -> str:
    """One row per arm: means over its seeds at the end of the runs, and how much more SFT would have needed."""
    start, greedy = mean(run.accuracies[0] for run in runs), mean(run.greedy[0] for run in runs)
    groups = by_arm(runs)
    reference = next((group for (arm, _), group in groups.items() if ARMS[arm].reads), None)
    rows = [
        [
            arm,
            f"{rate:g}",
            number(mean(run.flops[-1] for run in group) / 1e12),
            "-" if reference is None else times_as_much(group, reference),
            f"{mean(run.accuracies[-1] for run in group):.3f}",
            " ".join(f"{run.accuracies[-1]:.2f}" for run in group),
            f"{mean(run.greedy[-1] for run in group):.3f}",
            *(f"{mean(run.figures[name] for run in group):.3f}" for name in FIGURES),
        ]
        for (arm, rate), group in groups.items()
    ]
    return f"Before: {start:.3f} of the samples right, {greedy:.3f} greedily.\n\n{markdown_table(HEADER, rows)}"


def times_as_much(group: Sequence[Run], reference: Sequence[Run]) -> str:
    """How many times this arm's operations the reference needs for the accuracy that this arm ends with."""
    if group is reference:
        return "1"
    reached, spent = mean(run.accuracies[-1] for run in group), mean(run.flops[-1] for run in group)
    end = min(run.flops[-1] for run in reference)
    for place in (end * step / 600 for step in range(601)):
        if mean(accuracy_at(run, place) for run in reference) >= reached:
            return f"{place / spent:.2g}" if place else "0"
    return f"> {end / spent:.2g}"


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
    top = max(max(run.accuracies) for run in runs) * 1.1
    figure, axes = pyplot.subplots(
        lines, columns, sharex=True, sharey=True, figsize=(10, 1 + 1.7 * lines), squeeze=False, layout="constrained"
    )
    reference = next((group for (arm, _), group in groups.items() if ARMS[arm].reads), None)
    for panel, ((arm, _), group) in zip(axes.flat, groups.items(), strict=False):
        for drawn, colour in ((reference, "#999999"), (group, "#f58518" if arm.startswith("TRL") else "#4c78a8")):
            if drawn is not None:
                _line(panel, drawn, colour)
        panel.set_title(arm, fontsize=8)
        panel.set_ylim(0, top)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(axes.flat)[len(groups) :]:
        panel.set_visible(False)
    for panel in list(axes.flat)[max(len(groups) - columns, 0) : len(groups)]:
        panel.tick_params(labelbottom=True)
    grey = "grey: SFT on the teacher's texts; band: all seeds"
    figure.suptitle(f"{task}: share of samples that are right, against TFLOP ({grey})", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _line(panel, group: Sequence[Run], colour: str) -> None:
    end = min(run.flops[-1] for run in group)
    places = [end * step / 60 for step in range(61)]
    values = [[accuracy_at(run, place) for run in group] for place in places]
    tera = [place / 1e12 for place in places]
    panel.plot(tera, [mean(value) for value in values], color=colour)
    panel.fill_between(tera, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.25, linewidth=0)
