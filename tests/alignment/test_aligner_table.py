"""The table of examples/coverage_table.py: what is lost, where, and why."""

import subprocess
import sys
from pathlib import Path

from examples.coverage_table import coverage_table
from tests.alignment import texts
from tests.alignment.pairs import tokenizer


def test_the_table_shows_full_coverage_and_names_what_is_dropped():
    pairs = {
        "llama3 from qwen3": (tokenizer("llama3"), tokenizer("qwen3")),
        "llama3 from unigram": (tokenizer("llama3"), tokenizer("unigram")),
    }
    table = coverage_table(pairs, {name: texts.ALL[name] for name in ("english", "chinese", "nfd hangul")})
    header, rule, *rows = table.splitlines()
    assert header == "| text | llama3 from qwen3 | llama3 from unigram |"
    assert rule == "| --- | --- | --- |"
    cells = {row.split(" | ")[0].removeprefix("| "): row.removesuffix(" |").split(" | ")[1:] for row in rows}
    assert [cells[name][0] for name in cells] == ["1.000"] * 3
    assert "unspellable" in cells["chinese"][1]


def test_the_script_refuses_a_wrong_number_of_folders():
    done = subprocess.run(
        [sys.executable, "-m", "examples.coverage_table", "only-one"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Expected no argument or STUDENT TEACHER, got ['only-one']." in done.stderr
