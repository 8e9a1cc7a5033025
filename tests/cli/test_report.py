"""`trl-xtok report`, as it is called from a shell."""

import builtins

import pytest

from tests.report.folders import HOSTILE, whole_run
from trl_xtok.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("run"))


def test_the_page_stands_in_the_folder_of_the_run(folder, capsys):
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"Report: {folder / 'report.html'}\n"
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_the_page_stands_where_it_was_asked_for(folder, tmp_path):
    assert main(["report", str(folder), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert (tmp_path / "new" / "page.html").stat().st_size > 10_000


def test_figures_are_drawn_as_svg_and_pdf(folder, tmp_path, capsys):
    options = ["--output", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")]
    assert main(["report", str(folder), *options]) == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    wanted = ("loss", "reverse_kl_per_byte", "time_per_step", "eval_accuracy", "chunks_1_step_00000")
    assert {f"{name}.{kind}" for name in wanted for kind in ("svg", "pdf")} <= names
    assert f"Figure: {tmp_path / 'figures' / 'loss.svg'}" in capsys.readouterr().out
    assert HOSTILE[:20] not in (tmp_path / "figures" / "chunks_3_step_00000.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nowhere"], "There is no folder 'nowhere'", id="no folder"),
        pytest.param(["{empty}"], "has nothing that a run logged", id="no run"),
        pytest.param(["{run}", "--output", "{empty}"], "is a folder. Name a file in it", id="output is a folder"),
        pytest.param(["{run}", "--output", "/proc/no/x.html"], "cannot be written", id="output cannot be written"),
        pytest.param(["{run}", "--figures", "/proc/nothing"], "cannot be written", id="figures cannot be written"),
    ],
)
def test_wrong_input_is_refused(folder, tmp_path, capsys, arguments, message):
    given = [argument.format(empty=tmp_path, run=folder) for argument in arguments]
    assert main(["report", *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith("trl-xtok report: error: ")
    assert message in error


def test_figures_without_matplotlib_are_refused(folder, tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    assert main(["report", str(folder), "--figures", str(tmp_path)]) == 1
    assert "Matplotlib, which is not installed. Run `pip install 'trl-xtok[report]'`" in capsys.readouterr().err
