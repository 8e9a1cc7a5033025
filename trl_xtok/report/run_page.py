"""A run -> one HTML page about it."""

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from .chart_svg import chart_svg, number
from .credit import credited_completions
from .credit_html import credit_html
from .curves import Chart, charts
from .page import Section, render_page, resource, template, visible_text
from .pairs import Pair, Written, completion_pairs
from .run import Run


# What says whether a run went well, as far as a log can.
_TELLING = ("Reverse KL per byte", "Next-token divergence", "Coverage", "Non-canonical rollouts", "Stop rate")
_LENGTH = "Completion length"


def run_page(run: Run) -> str:
    """The HTML of the page."""
    curves = charts(run)
    title = f"{run.name}: {_name(run, 'student')} taught by {_name(run, 'teacher')}" if run.start else run.name
    return render_page(
        visible_text(title),
        [
            Section("Overview", _overview(run, curves)),
            Section("Curves", _curves(curves)),
            Section("Completions", _completions(completion_pairs(run))),
            Section("Credit by token", _credit(run)),
            Section("Settings", _settings(run)),
        ],
        lead=Markup("<p>{}</p>").format(_progress(run)),
        style=resource("report.css"),
        script=resource("report.js"),
    )


def _name(run: Run, side: str) -> str:
    return visible_text(str(run.start.get(side, {}).get("name") or "a model without a name"))


def _progress(run: Run) -> str:
    total = run.start.get("max_steps")
    steps = f"{run.last_step:,} of {total:,} steps" if isinstance(total, int) else f"{run.last_step:,} steps"
    if run.is_finished:
        return f"{steps}; the run came to its end."
    # A log at the last step but one is no sign of an early end, and a checkpoint does not hold the end.
    return f"{steps} logged; the run is still going on, or ended early." if run.start else f"{steps} logged."


def _overview(run: Run, curves: Sequence[Chart]) -> Markup:
    start = run.start
    facts = [(side, _model(start[side])) for side in ("student", "teacher") if isinstance(start.get(side), dict)]
    facts += [(name, visible_text(str(start[name]))) for name in ("objective", "device", "processes") if name in start]
    runtime = next((entry["train_runtime"] for entry in reversed(run.entries) if "train_runtime" in entry), None)
    facts.append(("steps", _progress(run)))
    if isinstance(runtime, int | float):
        facts.append(("training time", f"{runtime / 60:.1f} minutes"))
    changes = [
        {
            "title": chart.title,
            "label": series.label,
            "first": number(series.finite[0][1]),
            "last": number(series.finite[-1][1]),
        }
        for chart in curves
        if chart.title in (*_TELLING, _LENGTH) or chart.own
        for series in chart.series
        if chart.title != _LENGTH or series.label.startswith("mean")
    ]
    return Markup(template("overview.html").render(facts=facts, changes=changes, notes=run.notes))


def _model(facts: dict[str, Any]) -> str:
    """One line about a model."""
    parts = [str(facts.get("name") or "without a name")]
    size, trained = facts.get("parameters"), facts.get("trained")
    if isinstance(size, int):
        parts.append(f"{size / 1e6:,.0f} M parameters")
        if isinstance(trained, int) and 0 < trained < size:
            parts.append(f"{trained / 1e6:,.1f} M of them trained")
    return visible_text(", ".join(parts))


def _curves(curves: Sequence[Chart]) -> Markup:
    if not curves:
        return Markup("<p>Nothing was logged. Lower <code>logging_steps</code> to see how a run goes on.</p>")
    return Markup('<div class="grid charts">{}</div>').format(Markup("\n").join(map(chart_svg, curves)))


def _completions(pairs: Sequence[Pair]) -> Markup:
    intro = "Each prompt's first and last completion that was kept."
    if pairs and pairs[0].last is None:
        intro = "Completions were kept at one step only."
    elif pairs and not pairs[0].same_prompt:
        intro = "No prompt came up twice, so these are the first and the last completions that were kept."
    shown = []
    for pair in pairs:
        sides = [_side(written) for written in (pair.first, pair.last) if written is not None]
        same = pair.last is None or pair.same_prompt
        shown.append({"prompt": sides[0]["prompt"] if same else None, "sides": sides})
    return Markup(template("completions.html").render(pairs=shown, intro=intro))


def _side(written: Written) -> dict[str, str]:
    row = written.row
    figures = [
        f"{label} {number(row[name])}"
        for name, label in (("reverse_kl_per_byte", "reverse KL per byte"), ("coverage", "coverage"))
        if isinstance(row.get(name), float) and row[name] == row[name]
    ]
    if row.get("on_policy") is False:
        figures.append("not written by the student")
    return {
        "title": f"Step {written.step}",
        "prompt": visible_text(str(row.get("prompt", ""))),
        "text": visible_text(str(row.get("completion", ""))),
        "figures": ", ".join(figures),
    }


def _credit(run: Run) -> Markup:
    completions = credited_completions(run)
    if not completions:
        return Markup(
            "<p>The run kept no completion token by token. With <code>log_completions=True</code> it keeps a few at "
            "every log, and this page shows both tokenizations, the chunks, and each token's advantage.</p>"
        )
    return credit_html(completions)


def _settings(run: Run) -> Markup:
    def told(name: str) -> list[tuple[str, str]]:
        return [(visible_text(str(key)), _value(value)) for key, value in run.start.get(name, {}).items()]

    return Markup(template("settings.html").render(settings=told("settings"), versions=told("versions")))


def _value(value: Any) -> str:
    return visible_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
