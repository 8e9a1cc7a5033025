"""Figures for papers: the curves of a run and its chunks as SVG and PDF."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DependencyError, ReportError
from .credit import Chunk, Credited, Scale, Token, credited_completions, scale_of
from .curves import Chart, charts
from .page import visible_token
from .run import Run
from .words import kind_name


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_FORMATS = ("svg", "pdf")
_WIDTH = 6.5
_COLOURS = ("#1c68b8", "#b85c00", "#0a7a5c", "#8747ab", "#a8322b", "#5b6675")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
# Of the steps of the scale, as on the page in light colours: fill and ink.
_LEVELS = {
    -4: ("#a9500a", "white"),
    -3: ("#f0a95c", "black"),
    -2: ("#fad1a3", "black"),
    -1: ("#fdebd6", "black"),
    0: ("#eceff3", "black"),
    1: ("#dbe9f8", "black"),
    2: ("#aed0f3", "black"),
    3: ("#6eabe6", "black"),
    4: ("#1b5ea8", "white"),
}
# Later ones have what the first ones lack; which are installed differs.
_FONTS = ("DejaVu Sans Mono", "DejaVu Sans", "Noto Sans CJK SC", "Noto Sans Mono CJK SC", "Arial Unicode MS", "SimHei")
# The picture of chunks is laid out in cells of one character; sizes are in cells and lines.
_CELLS = 92
_PADDING = 1.2
_GAP = 0.5
_ROW = 3.0

Line = list[tuple[Chunk, list[str], list[str], float]]


def write_figures(run: Run, folder: Path) -> list[Path]:
    """Draw every curve, and every completion by chunks that the page shows.

    Args:
        run: What a run left.
        folder: Where to; it is made if it is not there.

    Returns:
        The files, each figure as SVG and as PDF.

    Raises:
        DependencyError: If Matplotlib is not installed.
        ReportError: If the folder cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError(
            "Figures are drawn with Matplotlib, which is not installed. Run `pip install 'trl-xtok[report]'`, or "
            "leave `--figures` out; the page needs no Matplotlib."
        ) from error
    settings: dict[str, Any] = {
        # A dollar sign in a text is one.
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
        "pdf.fonttype": 42,
        "svg.hashsalt": "trl-xtok",
    }
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(settings):
            for name, figure in _figures(run):
                for kind in _FORMATS:
                    paths.append(folder / f"{name}.{kind}")
                    no_date = {"Date": None} if kind == "svg" else {"CreationDate": None}
                    figure.savefig(paths[-1], bbox_inches="tight", metadata=no_date)
    except OSError as error:
        raise ReportError(f"The folder {folder} cannot be written ({error}). Give another to `--figures`.") from error
    return paths


def _figures(run: Run) -> Iterator[tuple[str, "Figure"]]:
    taken: set[str] = set()
    for chart in charts(run):
        name = re.sub(r"\W+", "_", f"eval_{chart.title}" if chart.own else chart.title.lower()).strip("_")
        # Two metrics of the user may differ in punctuation only.
        while name in taken:
            name += "_"
        taken.add(name)
        yield name, _curve(chart)
    completions = credited_completions(run)
    tokens = [token for one in completions for chunk in one.chunks for token in chunk.student]
    scale = scale_of([token.advantage for token in tokens if token.advantage is not None])
    for place, completion in enumerate(completions, start=1):
        yield f"chunks_{place}_step_{completion.step:05d}", _chunks(completion, scale)


def _new_figure(height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _curve(chart: Chart) -> "Figure":
    figure = _new_figure(3.0)
    axes = figure.subplots()
    if chart.stacked:
        steps = sorted({step for series in chart.series for step, _ in series.finite})
        heights = [[dict(series.finite).get(step, 0.0) for step in steps] for series in chart.series]
        labels = [series.label for series in chart.series]
        axes.stackplot(steps, heights, labels=labels, colors=_COLOURS[: len(labels)])
    else:
        for series, colour, dash in zip(chart.series, _COLOURS, _DASHES, strict=False):
            steps, values = zip(*series.points, strict=True)
            marker = "o" if series.sparse or len(series.finite) == 1 else ""
            axes.plot(steps, values, color=colour, linestyle=dash, marker=marker, markersize=4, label=series.label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"{chart.title} ({chart.unit})" if chart.unit else chart.title)
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y", alpha=0.3)
    if len(chart.series) > 1:
        axes.legend(frameon=False)
    return figure


def _chunks(completion: Credited, scale: Scale) -> "Figure":
    lines = list(_lines(completion.chunks, _drawable()))
    figure = _new_figure(0.55 * len(lines) + 0.5)
    axes = figure.subplots()
    axes.set_xlim(0, _CELLS)
    axes.set_ylim(_ROW * len(lines), -0.9)
    axes.axis("off")
    title = f"Step {completion.step}, {kind_name(completion.kind)}: student above, teacher below"
    axes.text(0, -0.4, title, fontsize=8, color="#444444")
    for index, line in enumerate(lines):
        left = 0.0
        for chunk, student, teacher, width in line:
            fills = [_colours(token, scale) for token in chunk.student]
            _boxes(axes, left, _ROW * index, width, student, fills)
            _boxes(axes, left, _ROW * index + 1.15, width, teacher, [("white", "black")] * len(teacher))
            left += width + _GAP
    return figure


def _colours(token: Token, scale: Scale) -> tuple[str, str]:
    if token.dropped is not None:
        return "white", "#777777"
    return _LEVELS[0 if token.advantage is None else scale.level(token.advantage)]


def _boxes(
    axes: "Axes", left: float, top: float, width: float, texts: Sequence[str], colours: Sequence[tuple[str, str]]
) -> None:
    """The tokens of one side of a chunk, as wide together as the chunk."""
    from matplotlib.patches import Rectangle

    total = sum(map(_cells, texts))
    for text, (fill, ink) in zip(texts, colours, strict=True):
        share = width * _cells(text) / total
        axes.add_patch(Rectangle((left, top), share, 1.05, facecolor=fill, edgecolor="#8a94a1", linewidth=0.5))
        fonts = [font for font in _FONTS if font in _installed()]
        axes.text(
            left + share / 2, top + 0.55, text, ha="center", va="center", color=ink, fontsize=7.2, fontfamily=fonts
        )
        left += share


def _lines(chunks: Sequence[Chunk], drawable: set[int]) -> Iterator[Line]:
    """Chunks in lines that fit the page; a line end in the text ends a line."""
    line: Line = []
    used = 0.0
    for chunk in chunks:
        sides = [[_text(token, drawable) for token in side] for side in (chunk.student, chunk.teacher)]
        width = max(sum(map(_cells, side)) for side in sides)
        if line and used + width > _CELLS:
            yield line
            line, used = [], 0.0
        # A chunk wider than the page is squeezed.
        line.append((chunk, *sides, min(width, _CELLS)))
        used += width + _GAP
        if any(token.spelled is not None and b"\n" in token.spelled for token in chunk.student):
            yield line
            line, used = [], 0.0
    if line:
        yield line


def _text(token: Token, drawable: set[int]) -> str:
    """What stands in the box; characters that no font has as their numbers."""
    shown = "⟨unknown⟩" if token.spelled is None else visible_token(token.spelled)
    named = "".join(c if ord(c) in drawable else f"⟨U+{ord(c):04X}⟩" for c in shown)
    return named if len(named) <= 40 else f"{named[:39]}…"


def _cells(text: str) -> float:
    return _PADDING + sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _installed() -> set[str]:
    from matplotlib.font_manager import fontManager

    return {font.name for font in fontManager.ttflist}


def _drawable() -> set[int]:
    """The characters that the installed ones of `_FONTS` have."""
    from matplotlib.font_manager import findfont, get_font

    return {code for font in _FONTS if font in _installed() for code in get_font(findfont(font)).get_charmap()}
