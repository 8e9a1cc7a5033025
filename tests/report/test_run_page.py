"""The page of a run: what stands on it for runs of every kind, and that text on it stays text."""

import re
import time
from html.parser import HTMLParser

import pytest

from tests.report.folders import START, entry, evaluation, whole_run, write_completions
from tests.report.folders import write_history as history
from trl_xtok.report.run import read_run
from trl_xtok.report.run_page import run_page


def page(folder) -> str:
    return run_page(read_run(folder))


class Texts(HTMLParser):
    """The text on a page, without scripts and styles, and what its elements refer to."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.links, self._inside = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._inside.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]

    def handle_data(self, data):
        if self._inside and self._inside[-1] not in ("script", "style"):
            self.text += data


def test_a_whole_run_is_shown(tmp_path):
    text = Texts(page(whole_run(tmp_path))).text
    for shown in (
        "student taught by org/teacher",
        "20 of 20 steps; the run came to its end.",
        "135 M parameters, 4.9 M of them trained",
        "Reverse KL per byte",
        "learning_rate",
        "0.003",
        "1.16.0",
        "Hello at 0",
        "Hello at 20",
        "Step 20, evaluation",
        "␣Hel",
        "1.0 minutes",
    ):
        assert shown in text


def test_nothing_is_fetched(tmp_path):
    html = page(whole_run(tmp_path))
    assert all(link.startswith("#") or link == "data:," for link in Texts(html).links)
    assert "url(" not in html
    assert "@import" not in html


def test_hostile_text_stays_text(tmp_path):
    html = page(whole_run(tmp_path))
    assert "<script>document" not in html
    assert "<img" not in html
    assert not re.findall("[\x00-\x08\x0b-\x1f\u202a-\u202e]", html)
    assert "</script><script>document.title='owned'</script>" in Texts(html).text


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        pytest.param([entry(1), entry(2)], "2 of 20 steps logged; the run is still going on", id="cut"),
        pytest.param([entry(1)], "kept no completions", id="no completions"),
        pytest.param([entry(1)], "kept no completion token by token", id="no chunks"),
        pytest.param([evaluation(0)], "0 of 20 steps", id="an evaluation alone"),
        pytest.param([entry(1, loss=float("nan"))], "1 of 20", id="a loss that is no number"),
        pytest.param([{"step": 1}], "Nothing was logged", id="an empty entry"),
    ],
)
def test_what_is_missing_is_said(tmp_path, entries, said):
    assert said in Texts(page(history(tmp_path, entries))).text


def test_a_run_without_a_history_has_a_page(tmp_path):
    write_completions(tmp_path, 3, {"Hi": "Hello"})
    text = Texts(page(tmp_path)).text
    assert "left no record of its settings" in text
    assert "Completions were kept at one step only" in text


def test_names_and_settings_are_data(tmp_path):
    start = START | {"student": {"name": "<b>\u202e"}, "settings": {"<i>": ["</td><script>"]}, "versions": {}}
    html = page(history(tmp_path, [entry(1)], start))
    assert "&lt;b&gt;⟨U+202E⟩" in html
    assert "<i>" not in html.replace("<i>L_T", "")
    assert "&lt;/td&gt;&lt;script&gt;" in html


def test_thousands_of_logs_make_a_small_page_soon(tmp_path):
    history(tmp_path, [entry(step) for step in range(1, 10_001)])
    start = time.process_time()
    html = page(tmp_path)
    assert len(html) < 1_500_000
    assert time.process_time() - start < 30
