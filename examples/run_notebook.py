"""Run the notebook on this machine, and write what it shows as a page of the documentation.

    python -m examples.run_notebook --page docs/notebook.md
    python -m examples.run_notebook --page notebook.md --set STEPS=2 --set NEW_TOKENS=8

Without a GPU the notebook takes the demo's models. It runs in a folder of its own, which is deleted afterwards.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode


NOTEBOOK = Path(__file__).with_name("trl_xtok_colab.ipynb")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HEAD = """\
<!-- Written by `python -m examples.run_notebook --page docs/notebook.md`. -->

"""


def run(
    folder: Path, settings: Mapping[str, str] | None = None, *, leave_out: Collection[str] = (), timeout: int = 1800
) -> NotebookNode:
    """Execute every cell in `folder`; a cell that fails ends it with an error.

    Args:
        folder: Where the notebook writes.
        settings: Name -> Python expression, set after the cell that is tagged `parameters`.
        leave_out: Ids of cells that do not run.
        timeout: Seconds for one cell.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.id in leave_out:
            cell.source = ""
    if settings:
        place = [index for index, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
        cell = nbformat.v4.new_code_cell("\n".join(f"{name} = {value}" for name, value in settings.items()))
        notebook.cells.insert(place[0] + 1, cell)
    client = NotebookClient(
        notebook, timeout=timeout, startup_timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    # Commands of the environment are found although it may not be activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return client.execute(env=os.environ | {"PATH": path})


def page(notebook: NotebookNode) -> str:
    """The notebook with its output as text."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            # Progress bars and warnings of libraries.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            # Terminals show colours, a page shows the codes for them.
            if "text" in output:
                output.text = _ESCAPES.sub("", output.text)
            if "data" in output:
                output.data = {"text/plain": _ESCAPES.sub("", output.data.get("text/plain", ""))}
    body, _ = MarkdownExporter().from_notebook_node(notebook)
    return _HEAD + re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


def main() -> None:
    """Run the notebook and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        executed = run(Path(folder), dict(item.split("=", 1) for item in args.set))
    args.page.write_text(page(executed), encoding="utf-8")


if __name__ == "__main__":
    main()
