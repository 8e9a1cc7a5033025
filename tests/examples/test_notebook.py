"""The notebook runs from the first cell to the last on the demo's models, and its page in the docs is of its cells."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest

from examples.run_notebook import NOTEBOOK, page, run
from trl_xtok.cli import main


PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"


SMALL = {"STEPS": "1", "BATCH": "2", "NEW_TOKENS": "4", "HELD_OUT": "2"}


def check(notebook: nbformat.NotebookNode, folder: Path) -> dict[str, str]:
    """What the cells showed, by their ids, once it is known that the run left what it should."""
    shown = {cell.id: "".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells}
    assert re.search(r"xtok/coverage +\d\.\d{3} -> +\d\.\d{3}", shown["figures"])
    assert shown["completions"].count("after") == 2
    assert (folder / "out" / "adapter_model.safetensors").is_file()
    assert (folder / "out" / "report.html").is_file()
    return shown


def test_the_cells_run(tmp_path):
    # A minute of computation, with tests of its own.
    check(run(tmp_path, SMALL, leave_out={"plan"}, timeout=300), tmp_path)


def test_the_command_that_is_left_out_is_one(monkeypatch):
    (cell,) = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.id == "plan"]
    sizes, command = re.findall(r'^SIZES = f"(.*)"$|^!trl-xtok (.*)$', cell.source, re.MULTILINE)
    line = command[1].replace("{SIZES}", sizes[0]).format(student="s", teacher="t", BATCH=4, NEW_TOKENS=24)
    planned = []
    monkeypatch.setattr("trl_xtok.cli.plan.run", lambda args: planned.append(args) or 0)
    assert main(shlex.split(line)) == 0
    assert planned[0].max_new_tokens == 24


@pytest.mark.slow
def test_all_cells_run(tmp_path):
    assert "T4" in check(run(tmp_path, SMALL), tmp_path)["plan"]


def test_its_page_has_its_cells():
    text = PAGE.read_text()
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        # A page has no two blank lines.
        assert re.sub(r"\n{3,}", "\n\n", cell.source) in text, cell.id
    assert not re.search(r"/(root|home|tmp|work)/", text), "paths of the machine"


def test_the_notebook_is_kept_without_output():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_escape_codes_of_terminals_are_left_out():
    output = nbformat.v4.new_output("stream", text="\x1b[1mbold\x1b[0m\n")
    cell = nbformat.v4.new_code_cell("!true", outputs=[output])
    assert "bold" in page(nbformat.v4.new_notebook(cells=[cell]))
    assert "\x1b" not in page(nbformat.v4.new_notebook(cells=[cell]))
