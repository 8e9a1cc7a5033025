"""The numbers of `docs/how_it_works.md` are those that its script prints, and they are what the page says of them."""

import re
from collections import Counter
from pathlib import Path

import pytest

from examples.how_it_works import renew, tables


PAGE = (Path(__file__).parents[2] / "docs" / "how_it_works.md").read_text()
NUMBER = r"-?\d+\.\d{3}"


def cells(name: str) -> list[list[str]]:
    """The rows of a table of the page, without its head."""
    content = PAGE.split(f"<!-- table: {name} -->\n")[1].split("<!-- end -->")[0]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in content.strip().splitlines()[2:]]


def test_the_page_shows_what_the_script_prints():
    fresh = renew(PAGE, tables())
    assert re.sub(NUMBER, "#", fresh) == re.sub(NUMBER, "#", PAGE)
    # Processors differ in the last digits of float32.
    numbers = [list(map(float, re.findall(NUMBER, text))) for text in (fresh, PAGE)]
    assert numbers[0] == pytest.approx(numbers[1], abs=3e-3)


def test_the_rules_share_the_gap_as_the_page_says():
    gaps = {chunk: float(gap) for chunk, *_, gap in cells("chunks")}
    sizes = Counter(chunk for _, chunk, *_ in cells("credit"))
    for place, share in enumerate([1, 1, 1, None]):
        for chunk, gap in gaps.items():
            total = sum(float(row[3 + place]) for row in cells("credit") if row[1] == chunk)
            assert total == pytest.approx(gap * (share or sizes[chunk]), abs=5e-3)


def test_the_figures_follow_from_the_tables():
    rows = cells("chunks")
    (size,) = re.findall(r"of (\d+) bytes", PAGE)
    assert sum(int(row[3]) for row in rows) == int(size) == len("Crème brûlée costs 1234 yen 🦜".encode())
    gaps = [float(row[-1]) for row in rows]
    coverage, per_byte, end, loss = (float(value) for _, value in cells("figures"))
    assert coverage == 1
    assert per_byte == pytest.approx(-sum(gaps[:-1]) / int(size), abs=2e-3)
    assert end == pytest.approx(-gaps[-1], abs=2e-3)
    losses = [-float(advantage) * float(logp) for _, _, logp, advantage, *_ in cells("credit")]
    assert loss == pytest.approx(sum(losses) / len(losses), abs=2e-2)


def test_numbers_in_the_text_are_those_of_the_tables():
    tables, text = [], []
    for line in PAGE.replace("\N{MINUS SIGN}", "-").splitlines():
        (tables if line.startswith("|") else text).append(line)
    assert {*re.findall(NUMBER, "\n".join(text))} <= {*re.findall(NUMBER, "\n".join(tables))}
