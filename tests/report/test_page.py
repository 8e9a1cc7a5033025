"""The shell of a page: what is escaped, what may run, and what a reader sees of what cannot be seen."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from markupsafe import Markup

from tests.report.folders import HOSTILE
from trl_xtok.report.page import Section, render_page, visible_text, visible_token


def page(**changes) -> str:
    sections = [Section("First", Markup("<p>{}</p>").format(HOSTILE)), Section("The second", HOSTILE)]
    return render_page(HOSTILE, sections, **{"lead": HOSTILE, "style": ".x>a{}", "script": "1 < 2 && 3"} | changes)


class Elements(HTMLParser):
    """The elements of a page, and the texts of its scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found and self.found[-1][0] in ("script", "style") and data.strip():
            self.raw.append(data)


def test_text_adds_no_element():
    def tags(html: str) -> list[str]:
        return [tag for tag, _ in Elements(html).found]

    harmless = render_page(
        "a", [Section("First", Markup("<p>b</p>")), Section("The second", "c")], lead="d", script="1"
    )
    assert tags(page()) == tags(harmless)
    assert "{{ 7 * 7 }}" in page(), "text is no template"


def test_only_the_pages_own_style_and_script_may_run():
    elements = Elements(page())
    policy = next(attributes["content"] for tag, attributes in elements.found if "http-equiv" in attributes)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in elements.raw]
    assert re.findall(r"'sha256-([^']+)'", policy or "") == hashes
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    # The policy forbids them, so one would be a mistake.
    assert not [attributes for _, attributes in elements.found if "style" in attributes]


def test_a_page_without_script_runs_none():
    assert "<script" not in page(script="", lead="", style="").replace("&lt;", "").split("<body>")[0]
    assert "script-src &#39;none&#39;" in page(script="")


def test_sections_are_linked():
    html = page()
    assert '<a href="#the-second">The second</a>' in html
    assert '<section id="the-second"' in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a b\tc\nd", "a b\tc\nd", id="white space stays"),
        pytest.param("a\r\nb", "a\nb", id="a line end is one"),
        pytest.param("\x00\x1b[0m\x7f\x85", "␀␛[0m␡⟨U+0085⟩", id="control characters"),
        pytest.param("\u202eabc\u2066", "⟨U+202E⟩abc⟨U+2066⟩", id="direction marks"),
        pytest.param("a\ud800", "a\ufffd", id="half a character"),
        pytest.param("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680", id="a joined emoji stays one"),
        pytest.param("\u0645\u0631", "\u0645\u0631", id="Arabic letters"),
    ],
)
def test_visible_text(text, shown):
    assert visible_text(text) == shown


@pytest.mark.parametrize(
    ("spelled", "shown"),
    [
        pytest.param(b" the", "␣the", id="a space before a word"),
        pytest.param(b"\n\n\t", "⏎⏎⇥", id="line ends and a tab"),
        pytest.param("\u00a0\u3000".encode(), "⟨U+00A0⟩⟨U+3000⟩", id="other spaces"),
        pytest.param("🦜".encode()[:2], "⟨F0⟩⟨9F⟩", id="half of a character"),
        pytest.param("\u0301".encode(), "◌\u0301", id="a mark without its letter"),
        pytest.param("\u200d\ufeff".encode(), "⟨U+200D⟩⟨U+FEFF⟩", id="no width at all"),
        pytest.param("你好".encode(), "你好", id="Chinese"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_visible_token(spelled, shown):
    assert visible_token(spelled) == shown
