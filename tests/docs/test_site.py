"""The documentation builds without a warning, is complete, and asks no other host for anything."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import trl_xtok
from trl_xtok import objectives


ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md"))
TYPES = {"Backend", "Credit"}
MODULES = {path.stem for path in ROOT.glob("trl_xtok/objectives/*.py")}
# What a browser fetches for a page without being asked by the reader.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """The ids of a page, its links, and what it fetches."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        # These say where the page is, and are not fetched.
        if tag in FETCHED and values.get(FETCHED[tag]) and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(values[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built strictly from the working tree in a folder of its own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "mkdocs.yml").write_text((ROOT / "mkdocs.yml").read_text())
    shutil.copytree(ROOT / "docs", folder / "docs")
    # Read for the API pages.
    (folder / "trl_xtok").symlink_to(ROOT / "trl_xtok")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # Those of the API pages do not count as warnings of the build itself.
    assert not re.search(r"error|warning", said, re.IGNORECASE), said
    return folder / "site"


@pytest.fixture(scope="module")
def built(site) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


def test_every_page_is_built_and_in_the_navigation(built):
    listed = re.findall(r"(\w+)\.md", yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(path.stem for path in PAGES)
    assert {f"{name}.html" for name in listed} <= built.keys()


def test_nothing_is_fetched_from_another_host(built, site):
    assert not {url for page in built.values() for url in page.fetched if urlsplit(url).netloc}
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_every_link_within_the_site_leads_somewhere(built):
    for name, page in built.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            target = (Path(name).parent / unquote(parts.path)).as_posix() if parts.path else name
            target = "index.html" if target in (".", "") else target
            assert target in built, (name, link)
            assert not parts.fragment or unquote(parts.fragment) in built[target].ids, (name, link)


def test_every_public_name_is_on_the_api_page(built):
    names = {f"trl_xtok.{name}" for name in trl_xtok.__all__}
    # Aliases of types have no entry of their own.
    functions = {*objectives.__all__} - TYPES
    # A module of the same name hides what it is imported from.
    names |= {
        f"trl_xtok.objectives.{name}.{name}" if name in MODULES else f"trl_xtok.objectives.{name}"
        for name in functions
    }
    assert names <= built["api.html"].ids


def test_links_of_the_readme_lead_somewhere(built):
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if not parts.scheme:
            assert (ROOT / parts.path).exists(), link
            page = Path(parts.path).name.replace(".md", ".html")
            assert not parts.fragment or parts.fragment in built[page].ids, link
