"""Make the screenshots of `docs/report.md` from the report of a run, in a headless Chromium.

    python examples/report_screenshots.py RUN_DIR --output docs

Needs `pip install playwright pillow` and a Chromium or Chrome on PATH.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from trl_xtok.report.run import read_run
from trl_xtok.report.run_page import run_page


class Shot(NamedTuple):
    """One picture: the section, or else a picture of credit, the size of the window, and in which colours."""

    name: str
    section: str
    size: tuple[int, int]
    scheme: str
    scale: float = 1.5
    with_token: bool = False


SHOTS = (
    Shot("report_curves_light", "curves", (1180, 760), "light"),
    Shot("report_credit_light", "credit-by-token", (1180, 760), "light", with_token=True),
    Shot("report_credit_dark", "credit-by-token", (1180, 760), "dark", with_token=True),
    Shot("report_phone", "", (390, 780), "light", scale=2, with_token=True),
)
COLOURS = 192
# A student token of a chunk that has several.
SPLIT = ".flow .token.student:has(+ .token.student)"


def shoot(browser: Browser, page_path: Path, shot: Shot) -> bytes:
    """The PNG of one picture, in few colours so that it stays small."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.scheme == "dark" else "light",
        device_scale_factor=shot.scale,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(page_path.as_uri())
    token = page.locator(SPLIT).first
    if shot.section:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", shot.section)
    else:
        token.evaluate("token => token.closest('.picture').scrollIntoView()")
    if shot.with_token:
        token.evaluate("token => token.focus({ preventScroll: true })")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    buffer = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Render the report and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    args = parser.parse_args()
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (page_path := Path(folder, "report.html")).write_text(run_page(read_run(args.run_dir)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=executable)
        for shot in SHOTS:
            content = shoot(browser, page_path, shot)
            (args.output / f"{shot.name}.png").write_bytes(content)
            print(f"{shot.name}.png: {len(content) / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
