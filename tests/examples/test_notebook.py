"""The notebook runs from the first cell to the last on the demo's models, and its page in the docs is of its cells."""

import re
from pathlib import Path

import nbformat
import pytest

from examples.run_notebook import NOTEBOOK, page, run


PAGE = Path(__file__).parents[2] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    return run(folder, {"STEPS": "1", "BATCH": "2", "NEW_TOKENS": "4", "HELD_OUT": "2"}, timeout=300), folder


def test_it_shows_what_it_promises(executed):
    notebook, folder = executed
    shown = {cell.id: "".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells}
    assert re.search(r"xtok/coverage +\d\.\d{3} -> +\d\.\d{3}", shown["figures"])
    assert shown["completions"].count("after") == 2
    assert "T4" in shown["plan"]
    assert (folder / "out" / "adapter_model.safetensors").is_file()
    assert [*folder.glob("out/*.html")]


def test_its_page_has_its_cells():
    text = PAGE.read_text()
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.source in text, cell.id
    assert not re.search(r"/(root|home|tmp|work)/", text), "paths of the machine"


def test_the_notebook_is_kept_without_output():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_escape_codes_of_terminals_are_left_out():
    output = nbformat.v4.new_output("stream", text="\x1b[1mbold\x1b[0m\n")
    cell = nbformat.v4.new_code_cell("!true", outputs=[output])
    assert "bold" in page(nbformat.v4.new_notebook(cells=[cell]))
    assert "\x1b" not in page(nbformat.v4.new_notebook(cells=[cell]))
