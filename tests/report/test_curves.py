"""Which curves there are of a log, and how they are drawn."""

import json
import math
import re

import pytest

from tests.report.folders import entry, evaluation
from trl_xtok.report.chart_svg import chart_svg, stacked, thinned, ticks
from trl_xtok.report.curves import Chart, Series, charts
from trl_xtok.report.run import Run


def drawn(*entries) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts(Run("run", entries=list(entries)))}


def labels(chart: Chart) -> list[str]:
    return [series.label for series in chart.series]


def test_a_run_without_evaluation_has_curves_of_training_alone():
    found = drawn(entry(1), entry(2))
    assert {"Loss", "Reverse KL per byte", "Coverage", "Dropped tokens", "Time per step"} <= set(found)
    assert all(labels(found[title]) == ["training"] for title in ("Loss", "Coverage", "Stop rate"))
    assert found["Loss"].series[0].points == [(1, 0.75), (2, 0.5)]
    assert labels(found["Time per step"]) == ["rollout", "align", "teacher", "student"]


def test_reasons_that_dropped_nothing_are_left_out_and_the_largest_comes_first():
    assert labels(drawn(entry(1))["Dropped tokens"]) == ["unfinished", "invalid utf8"]


def test_many_reasons_are_put_together():
    reasons = {f"xtok/dropped_reason{number}": 0.1 / (number + 1) for number in range(9)}
    chart = drawn(entry(1, **reasons))["Dropped tokens"]
    assert (len(chart.series), chart.series[-1].label) == (6, "other reasons")
    total = sum(series.points[0][1] for series in chart.series)
    assert total == pytest.approx(sum(reasons.values()) + 0.05)


def test_evaluations_and_metrics_of_the_user_have_curves():
    found = drawn(evaluation(0, accuracy=0.1), entry(1), evaluation(1, accuracy=0.3))
    assert labels(found["Loss"]) == ["training", "evaluation"]
    assert found["accuracy"].series[0].points == [(0, 0.1), (1, 0.3)]
    assert [title for title, chart in found.items() if chart.own] == ["accuracy"]


def test_several_evaluation_datasets_are_told_apart():
    found = drawn(entry(1), evaluation(1, "eval_a_", f1=0.5), evaluation(1, "eval_b_", f1=0.7))
    assert labels(found["Coverage"]) == ["training", "evaluation of a", "evaluation of b"]
    assert labels(found["f1"]) == ["evaluation of a", "evaluation of b"]


def test_off_policy_steps_have_lines_of_their_own():
    off = {f"off_policy/{name}": value for name, value in entry(1).items() if name.startswith("xtok/")}
    assert labels(drawn(entry(1, **off))["Coverage"]) == ["training", "off-policy"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "nan", True], ids=str)
def test_what_is_no_finite_number_is_a_gap_that_is_told(bad):
    chart = drawn(entry(1), entry(2, loss=bad), entry(3))["Loss"]
    assert chart.gaps == 1
    assert [step for step, _ in chart.series[0].finite] == [1, 3]
    html = chart_svg(chart)
    assert "1 value is no finite number" in html
    # Two strokes, none of which crosses the gap.
    assert re.findall(r'class="l k1" d="(M[^"]*)"', html)[0].count("M") == 2


def test_a_metric_that_was_never_finite_has_no_curve():
    assert "Loss" not in drawn(entry(1, loss=math.nan))


def test_what_was_logged_twice_counts_once():
    chart = drawn(entry(1, loss=1.0), entry(1, loss=2.0))["Loss"]
    assert chart.series[0].points == [(1, 2.0)]


def test_areas_stand_on_one_another():
    found = stacked([Series("a", [(1, 1.0), (2, 2.0)]), Series("b", [(2, 0.5), (3, math.nan)])])
    assert [series.points for series in found] == [[(1, 1.0), (2, 2.0)], [(1, 1.0), (2, 2.5)]]


def test_thousands_of_points_keep_their_extremes():
    values = [math.sin(step) + 9 * (step == 4321) for step in range(10_000)]
    points = [*enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= 800
    assert (4321, values[4321]) in kept
    assert len(chart_svg(Chart("Loss", "", [Series("training", points)]))) < 40_000


def test_a_pointer_finds_the_values_that_were_logged():
    series = [
        Series("training", [(step, step / 4) for step in range(1001)]),
        Series("evaluation", [(1000, -1.0)], True),
    ]
    html = chart_svg(Chart("Loss", "", series))
    values = json.loads(re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)[0])
    assert values["steps"][-1] == 1000
    assert len(values["steps"]) <= 400
    assert values["shown"][0][-1] == "250"
    assert values["shown"][1][-2:] == ["", "\N{MINUS SIGN}1"]
    assert values["y"][1][-2] is None


def test_names_of_metrics_are_data():
    html = chart_svg(Chart("</script><b>", "<i>", [Series('"><img>', [(1, 1.0)])]))
    assert "&lt;/script&gt;&lt;b&gt;" in html
    assert "<img" not in html
    assert "<i>" not in html
    assert html.count("</script>") == 1


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-1e-12, 1e-12], [1e30, -1e30], [3e-9, 4e-9]], ids=str)
def test_any_range_can_be_drawn(values):
    html = chart_svg(Chart("Loss", "", [Series("training", [*enumerate(values)])]))
    assert "nan" not in html
    assert "inf" not in html
    assert "<text" in html


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.13, 0.87), (-3.0, 17.0), (1e-6, 2e-6), (0.0, 12345.0)])
def test_ticks_are_few_and_enclose_the_values(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert found[0] <= low < high <= found[-1]
