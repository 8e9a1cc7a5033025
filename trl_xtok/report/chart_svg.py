"""A chart as inline SVG with axes, and what a pointer or a key finds on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .curves import Chart, Series
from .page import template
from .words import number


WIDTH, HEIGHT = 420, 232
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 26
_TICKS = 5
# Points of a line that a screen can tell apart.
_COLUMNS = 360
# Steps that a pointer can stop at.
_STOPS = 400
_FEW = 40


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to pixels.

    Attributes:
        low: Value at `start`.
        high: Value at `end`.
        start: Pixel.
        end: Pixel.
        ticks: Values that are marked.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def chart_svg(chart: Chart) -> Markup:
    """The figure of a chart.

    The script of the page moves a mark over it; without the script it shows the last values.
    """
    series = stacked(chart.series) if chart.stacked else chart.series
    steps = [step for one in series for step, _ in one.finite]
    values = [value for one in series for _, value in one.finite]
    x = _axis(min(steps), max(steps), _LEFT, WIDTH - _RIGHT, whole=True)
    y = _axis(*_range(chart, values), HEIGHT - _BOTTOM, _TOP)
    lines = []
    floor: Series | None = None
    for one in series:
        lines.append(
            {
                "line": "" if chart.stacked else _line(one, x, y),
                "area": _area(one, floor, x, y) if chart.stacked else "",
                "dots": [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in one.finite]
                if not chart.stacked and (one.sparse or len(one.finite) == 1) and len(one.finite) <= _FEW
                else [],
            }
        )
        floor = one
    return Markup(
        template("chart.html").render(
            chart=chart,
            size=(WIDTH, HEIGHT),
            plot=(_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM),
            x_ticks=[(f"{x(tick):.1f}", number(tick)) for tick in x.ticks],
            y_ticks=[(f"{y(tick):.1f}", number(tick)) for tick in y.ticks],
            lines=lines,
            values=_stops(chart.series, series, x, y),
            last=[number(one.finite[-1][1]) for one in chart.series],
            summary=_summary(chart),
        )
    )


def stacked(series: Sequence[Series]) -> list[Series]:
    """Each series on top of those before it; what was not logged at a step counts as nothing."""
    steps = sorted({step for one in series for step, _ in one.finite})
    total, result = dict.fromkeys(steps, 0.0), []
    for one in series:
        for step, value in one.finite:
            total[step] += value
        result.append(Series(one.label, [(step, total[step]) for step in steps], one.sparse))
    return result


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round values from just below `low` to just above `high`.

    Example:
        >>> ticks(0.13, 0.87)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) + 0.0 for index in range(first, last + 1)]


def _range(chart: Chart, values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value that the chart has room for."""
    low, high = min(values), max(values)
    if chart.stacked:
        low = min(low, 0.0)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    # One value alone has nothing to be compared with but zero, or the whole.
    whole = 1.0 if chart.unit.startswith("share") else 2 * high or 1.0
    return min(0.0, whole), max(0.0, whole)


def _axis(low: float, high: float, start: float, end: float, *, whole: bool = False) -> Axis:
    if whole and low == high:
        return Axis(low - 1, high + 1, start, end, [low])
    marks = ticks(low, high, whole=whole)
    if whole:
        # Steps end where the run ends.
        return Axis(low, high, start, end, [mark for mark in marks if low <= mark <= high])
    return Axis(marks[0], marks[-1], start, end, marks)


def _line(series: Series, x: Axis, y: Axis) -> str:
    """A path with a gap wherever a value is missing."""
    path, pen = [], "M"
    for step, value in thinned(series.points):
        if math.isfinite(value):
            path.append(f"{pen}{x(step):.1f} {y(value):.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(path)


def _area(series: Series, floor: Series | None, x: Axis, y: Axis) -> str:
    points = thinned(series.points)
    below = dict(floor.points) if floor is not None else {}
    edge = [f"{x(step):.1f} {y(value):.1f}" for step, value in points]
    back = [f"{x(step):.1f} {y(below.get(step, 0.0)):.1f}" for step, _ in reversed(points)]
    return "M" + "L".join([*edge, *back]) + "Z"


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Of more points than a screen can show the lowest and the highest of each stretch, and every gap."""
    size = math.ceil(len(points) / _COLUMNS)
    if size <= 2:
        return points
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        chosen = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        kept += sorted(chosen)
        if len(finite) < len(stretch):
            kept.append((stretch[-1][0], math.nan))
    return kept


def _stops(logged: Sequence[Series], drawn: Sequence[Series], x: Axis, y: Axis) -> dict[str, list[Any]]:
    """Where a pointer stops: pixels, and what is shown there."""
    steps = sorted({step for one in logged for step, _ in one.finite})
    stride = math.ceil(len(steps) / _STOPS)
    # The last step is always among them.
    steps = steps[::-1][::stride][::-1]
    values, heights = [dict(one.finite) for one in logged], [dict(one.finite) for one in drawn]
    return {
        "steps": steps,
        "x": [round(x(step), 1) for step in steps],
        "y": [[round(y(found[step]), 1) if step in found else None for step in steps] for found in heights],
        "shown": [[number(found[step]) if step in found else "" for step in steps] for found in values],
    }


def _summary(chart: Chart) -> str:
    parts = []
    for one in chart.series:
        first, last = one.finite[0], one.finite[-1]
        parts.append(f"{one.label} from {number(first[1])} at step {first[0]} to {number(last[1])} at step {last[0]}")
    return f"{chart.title}: {'; '.join(parts)}. The arrow keys move through the steps."
