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
    """One picture: where on the page, how wide and high the window is, and in which colours."""

    name: str
    section: str
    size: tuple[int, int]
    scheme: str
    scale: float = 1.5
    token: int | None = None


SHOTS = (
    Shot("report_curves_light", "curves", (1180, 760), "light"),
    Shot("report_credit_light", "credit-by-token", (1180, 760), "light", token=6),
    Shot("report_credit_dark", "credit-by-token", (1180, 760), "dark", token=6),
    Shot("report_overview_dark", "", (1180, 620), "dark"),
    Shot("report_phone", "credit-by-token", (390, 780), "light", scale=2, token=4),
)
COLOURS = 192


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
    if shot.section:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", shot.section)
    if shot.token is not None:
        page.locator(".flow .token.student").nth(shot.token).evaluate("token => token.focus({ preventScroll: true })")
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
