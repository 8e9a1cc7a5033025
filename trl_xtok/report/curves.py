"""What a run logged -> the curves of a report: which there are, of what, and in which unit."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .run import Entry, Run
from .words import kind_name


# A curve has at most so many areas or lines; the rest is put together.
_MOST_SERIES = 6
_COVERAGE = "xtok/coverage"
_PHASES = ("rollout", "align", "teacher", "student")
# Title, unit, name of the metric, and how to read it.
_METRICS = (
    (
        "Loss",
        "per trained token",
        "loss",
        "Not comparable between objectives; a policy gradient's loss need not fall.",
    ),
    (
        "Reverse KL per byte",
        "nats",
        "xtok/reverse_kl_per_byte",
        "What training lowers. Good news only while coverage, stop rate and lengths stay sound.",
    ),
    ("Next-token divergence", "nats", "xtok/vocab_jsd", "Mean over the compared next-token distributions."),
    ("Coverage", "share of tokens", _COVERAGE, "Sampled tokens that are trained on."),
    (
        "Non-canonical rollouts",
        "share of rollouts",
        "xtok/noncanonical_ratio",
        "Rollouts that the student's own tokenizer would cut differently.",
    ),
    ("Stop rate", "share of rollouts", "xtok/stop_rate", "Completions that end by themselves."),
    ("Reverse KL of the end of turn", "nats", "xtok/reverse_kl_end", "Of stop tokens alone."),
    ("Clipped advantages", "share of tokens", "xtok/clipped_advantages", ""),
    ("Cross-entropy", "nats per token", "xtok/cross_entropy", "On completions that the student did not write."),
    ("Entropy", "nats", "entropy", "Of the student, estimated from sampled tokens."),
    ("Gradient norm", "before clipping", "grad_norm", ""),
    ("Learning rate", "", "learning_rate", ""),
    ("Peak memory", "GiB", "memory/peak_gb", "Most that torch had allocated since the last log."),
)
_LENGTHS = (("mean", "mean_length"), ("shortest", "min_length"), ("longest", "max_length"))
# What an evaluation logs besides the user's own metrics.
_NOT_OWN = ("loss", "entropy", "runtime", "samples_per_second", "steps_per_second", "num_tokens", "step_time")
_NOT_OWN_PREFIXES = ("xtok/", "completions/", "time/", "memory/", "sampling/", "model_preparation", "num_input_tokens")


@dataclass(frozen=True, slots=True)
class Series:
    """One line or area.

    Attributes:
        label: What it is.
        points: Step and value, by step; NaN where what was logged is no finite number.
        sparse: Whether its points are few and shown as such.
    """

    label: str
    points: Sequence[tuple[int, float]]
    sparse: bool = False

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points that can be drawn."""
        return [point for point in self.points if math.isfinite(point[1])]


@dataclass(frozen=True, slots=True)
class Chart:
    """Series over one axis of steps.

    Attributes:
        title: What is shown.
        unit: Of the values; may be empty.
        series: At least one, each with a point that can be drawn.
        note: How to read it; may be empty.
        stacked: Whether the values add up.
        gaps: Values that were logged and are no finite numbers.
        own: Whether it is a metric of the user.
    """

    title: str
    unit: str
    series: Sequence[Series]
    note: str = ""
    stacked: bool = False
    gaps: int = 0
    own: bool = False


def charts(run: Run) -> list[Chart]:
    """The curves of a run, without those of which nothing was logged."""
    prefixes = evaluations(run.entries)
    sources = [
        ("training", ""),
        ("off-policy", "off_policy/"),
        *((kind_name(prefix.removesuffix("_")), prefix) for prefix in prefixes),
    ]
    found = []
    for title, unit, name, note in _METRICS:
        series = [_series(run.entries, prefix + name, label, prefix in prefixes) for label, prefix in sources]
        found.append(_chart(title, unit, series, note))
        if name == _COVERAGE:
            found.append(_dropped(run.entries, ["", "off_policy/", *prefixes]))
        if name == "xtok/stop_rate":
            found.append(_lengths(run.entries, prefixes))
    found.append(_times(run.entries))
    found += _own_metrics(run.entries, prefixes)
    return [chart for chart in found if chart is not None]


def evaluations(entries: Sequence[Entry]) -> list[str]:
    """What the names of evaluations' metrics begin with, `eval_` or, with several datasets, `eval_<name>_`."""
    names = {name for entry in entries for name in entry if name.endswith(f"_{_COVERAGE}")}
    return sorted(name.removesuffix(_COVERAGE) for name in names)


def value_of(entry: Entry, name: str) -> float:
    """A logged number; NaN for what is none."""
    value = entry[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else math.nan


def points_of(entries: Iterable[Entry], name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric; of a step that logged it twice the later value."""
    return sorted({entry["step"]: value_of(entry, name) for entry in entries if name in entry}.items())


def _series(entries: Sequence[Entry], name: str, label: str, sparse: bool = False) -> Series:
    return Series(label, points_of(entries, name), sparse)


def _chart(
    title: str, unit: str, series: Iterable[Series], note: str = "", *, stacked: bool = False, own: bool = False
) -> Chart | None:
    logged = [one for one in series if one.points]
    gaps = sum(len(one.points) - len(one.finite) for one in logged)
    drawn = [one for one in logged if one.finite]
    return Chart(title, unit, drawn[:_MOST_SERIES], note, stacked, gaps, own) if drawn else None


def _dropped(entries: Sequence[Entry], prefixes: Sequence[str]) -> Chart | None:
    """Why tokens are not trained on, in training or, if nothing was logged there, elsewhere."""
    for prefix in prefixes:
        start = f"{prefix}xtok/dropped_"
        names = sorted({name for entry in entries for name in entry if name.startswith(start)})
        series = [_series(entries, name, name.removeprefix(start).replace("_", " ")) for name in names]
        totals = {one.label: sum(value for _, value in one.finite) for one in series}
        series = sorted((one for one in series if totals[one.label]), key=lambda one: -totals[one.label])
        if series:
            if len(series) > _MOST_SERIES:
                series = [*series[: _MOST_SERIES - 1], _sum("other reasons", series[_MOST_SERIES - 1 :])]
            return _chart(
                "Dropped tokens", "share of tokens", series, "What is not trained on, by reason.", stacked=True
            )
    return None


def _sum(label: str, series: Sequence[Series]) -> Series:
    totals: dict[int, float] = {}
    for one in series:
        for step, value in one.finite:
            totals[step] = totals.get(step, 0.0) + value
    return Series(label, sorted(totals.items()))


def _lengths(entries: Sequence[Entry], prefixes: Sequence[str]) -> Chart | None:
    series = [_series(entries, f"completions/{name}", label) for label, name in _LENGTHS]
    series += [
        _series(entries, f"{prefix}completions/mean_length", f"mean, {kind_name(prefix)}", True) for prefix in prefixes
    ]
    return _chart("Completion length", "tokens", series)


def _times(entries: Sequence[Entry]) -> Chart | None:
    series = [_series(entries, f"time/{phase}", phase) for phase in _PHASES]
    note = "Mean of an optimizer step, without the optimizer itself."
    return _chart("Time per step", "seconds", series, note, stacked=True)


def _own_metrics(entries: Sequence[Entry], prefixes: Sequence[str]) -> list[Chart | None]:
    """The user's own metrics of evaluations."""
    of_prefix: dict[str, list[str]] = {}
    for name in sorted({name for entry in entries for name in entry}):
        # The longest, since `eval_` begins `eval_<name>_` too.
        prefix = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        own = name.removeprefix(prefix) if prefix is not None else ""
        if own and own not in _NOT_OWN and not own.startswith(_NOT_OWN_PREFIXES):
            of_prefix.setdefault(own, []).append(prefix or "")
    return [
        _chart(own, "", [_series(entries, prefix + own, kind_name(prefix), True) for prefix in found], own=True)
        for own, found in of_prefix.items()
    ]
