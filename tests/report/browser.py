"""A headless Chromium that opens a page from a file, and what happens in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright


_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")

# The lowest contrast of text with what lies behind it, over all elements that show text of their own.
LOWEST_CONTRAST = """
(root) => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let lowest = { ratio: 99, text: "" };
  for (const element of document.querySelectorAll(root)) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
    if (!text || !element.checkVisibility() || element.closest(".hidden, .skip, script, style")) continue;
    const inSvg = element.namespaceURI.endsWith("svg");
    const [a, b] = [parse(getComputedStyle(element)[inSvg ? "fill" : "color"]), behind(element)].map(light);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < lowest.ratio) lowest = { ratio, text: `${element.className} ${text.slice(0, 40)}` };
  }
  return lowest;
}
"""


@dataclass
class Opened:
    """A page, and what it did.

    Attributes:
        page: The page.
        complaints: What was written to the console as a warning or an error, and uncaught errors.
        requests: Addresses that were asked for.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium of this machine, or the one of Playwright; without either the test is skipped."""
    installed = next(filter(None, map(shutil.which, _NAMES)), None)
    with sync_playwright() as playwright:
        path = installed or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip(
                f"no Chromium: none of {', '.join(_NAMES)} is on PATH; install one, or run `playwright install`"
            )
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, **context: Any) -> Iterator[Opened]:
    """Open a file; whatever else it asks for does not leave the machine."""
    tab = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "offline": True} | context).new_page()
    found = Opened(tab)
    tab.on("console", lambda said: found.complaints.append(said.text) if said.type in ("warning", "error") else None)
    tab.on("pageerror", lambda error: found.complaints.append(str(error)))
    tab.on("request", lambda request: found.requests.append(request.url))
    tab.goto(path.as_uri())
    yield found
    tab.context.close()
