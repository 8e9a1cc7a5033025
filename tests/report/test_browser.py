"""The page in a real browser: by keyboard, by pointer, in light and dark, on a phone, and with hostile text on it."""

import pytest

from tests.report.browser import LOWEST_CONTRAST, chromium, opened
from tests.report.folders import START, chunk_row, entry, evaluation, whole_run, write_chunks
from tests.report.folders import write_history as history
from trl_xtok.report.run import read_run
from trl_xtok.report.run_page import run_page


MINUS = "\N{MINUS SIGN}"
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The page of a run with hostile text, and with a token of every colour."""
    folder = whole_run(tmp_path_factory.mktemp("run"))
    history(folder, [evaluation(0, accuracy=0.25), *(entry(step) for step in range(1, 21))], START)
    levels = [-2.0, -1.2, -0.7, -0.3, 0.0, 0.3, 0.7, 1.2, 2.0]
    size = len(levels)
    row = chunk_row(
        "colours",
        **{f"{side}_ids": [*range(size)] for side in ("student", "teacher")},
        **{f"{side}_tokens": [b" word"] * size for side in ("student", "teacher")},
        **{f"{side}_chunks": [*range(size)] for side in ("student", "teacher")},
        student_logps=[-3.0] * size,
        teacher_logps=[-3.0 + level for level in levels],
        advantages=levels,
        drop_reasons=[None] * (size - 1) + ["invalid_utf8"],
        leaves_canonical=[True] * size,
    )
    write_chunks(folder, 20, [row])
    (page := folder / "report.html").write_text(run_page(read_run(folder)), encoding="utf-8")
    return page


def tab_to(page, selector: str) -> None:
    """Press Tab until the focus is there, as someone without a mouse does."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_nothing_is_asked_of_the_network_and_nothing_complains(browser, path):
    with opened(browser, path) as found:
        found.page.locator(".token").last.hover()
        assert [url for url in found.requests if not url.startswith("data:")] == [path.as_uri()]
        assert found.complaints == []
        assert "owned" not in found.page.title().replace("='owned'", "")
        assert found.page.locator("main img, main b script, main script:not([type='application/json'])").count() == 0


def test_the_policy_stops_a_script_that_got_onto_the_page(browser, path, tmp_path):
    """Shows that the test above could fail: even what was not escaped would not run."""
    html = path.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>")
    (spoiled := tmp_path / "spoiled.html").write_text(html)
    with opened(browser, spoiled) as found:
        assert found.page.title() != "owned"
        assert "Content Security Policy" in found.complaints[0]


def test_the_keyboard_reaches_tokens_and_shows_their_values(browser, path):
    with opened(browser, path) as found:
        page = found.page
        tab_to(page, ".token.student")
        panel = page.locator(".picture").first.locator(".panel")
        for shown in ("␣Hel", "advantage\n+1.200", f"log p\n{MINUS}1.000", "id\n10", f"L_S\n{MINUS}1.500"):
            assert shown in panel.inner_text()
        page.keyboard.press("ArrowDown")
        assert "teacher token\n␣Hello" in panel.inner_text()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "not trained on:\ninvalid utf8" in panel.inner_text()
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.matches('.token.teacher')")
        # The next stop is the next picture, not the next token.
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('.picture').querySelector('.panel').innerText") != ""
        assert "student token" in page.locator(".picture").nth(1).locator(".panel").inner_text()


def test_the_keyboard_moves_along_a_curve(browser, path):
    with opened(browser, path) as found:
        page = found.page
        tab_to(page, ".chart svg")
        readout = page.locator(".chart").first.locator(".readout")
        page.keyboard.press("Home")
        assert "step 0" in readout.inner_text()
        page.keyboard.press("ArrowRight")
        assert "step 1" in readout.inner_text()
        assert "training 0.75" in readout.inner_text()
        page.keyboard.press("End")
        assert "step 20" in readout.inner_text()


def test_a_pointer_shows_values(browser, path):
    with opened(browser, path) as found:
        page = found.page
        picture = page.locator(".picture").first
        picture.locator(".token.teacher").first.hover()
        assert "teacher token\n␣Hello" in picture.locator(".panel").inner_text()
        svg = page.locator(".chart svg").first
        box = svg.bounding_box()
        svg.hover(position={"x": box["width"] * 0.55, "y": box["height"] / 2})
        assert "step 10" in page.locator(".chart").first.locator(".readout").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["colour-advantage", "colour-ratio"])
def test_all_text_can_be_read(browser, path, scheme, colour):
    with opened(browser, path, color_scheme=scheme) as found:
        found.page.locator(f"#{colour}").check()
        ground = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        lowest = found.page.evaluate(LOWEST_CONTRAST, "body *")
        assert lowest["ratio"] >= 4.5, lowest["text"]
        swatches = found.page.locator(".legend .swatch")
        fills = swatches.evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
        assert len(set(fills)) == 9


def test_the_switch_overrules_the_system(browser, path):
    with opened(browser, path, color_scheme="light") as found:
        page = found.page

        def ground() -> str:
            return page.evaluate("getComputedStyle(document.body).backgroundColor")

        before = ground()
        page.locator("#theme-dark").check()
        dark = ground()
        page.emulate_media(color_scheme="dark")
        page.locator("#theme-light").check()
        assert ground() == before != dark
        page.locator("#theme-auto").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert page.locator("#theme-dark").is_checked()


def test_a_phone_scrolls_in_one_direction_only(browser, path):
    with opened(browser, path, **PHONE) as found:
        width = found.page.evaluate("document.documentElement.scrollWidth")
        assert width == found.page.evaluate("document.documentElement.clientWidth") == 390
        token = found.page.locator(".picture").first.locator(".token.student").first
        token.tap()
        assert "␣Hel" in found.page.locator(".picture").first.locator(".panel").inner_text()


BROKEN_NUMBERS = """
() => [...document.querySelectorAll("td.number")].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  return new Set([...range.getClientRects()].map((box) => box.top)).size > 1;
}).map((cell) => cell.innerText)
"""


def test_no_number_is_broken_on_a_phone(browser, path):
    with opened(browser, path, **PHONE) as found:
        assert found.page.locator("td.number").count() > 4
        assert found.page.evaluate(BROKEN_NUMBERS) == []


def test_without_scripts_all_texts_are_there(browser, path):
    with opened(browser, path, java_script_enabled=False) as found:
        text = found.page.locator("main").inner_text()
        for shown in ("Hello at 20", "␣Hel", "Reverse KL per byte", "training"):
            assert shown in text
        assert found.page.locator(".chart path").first.is_visible()
