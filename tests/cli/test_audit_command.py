"""`trl-xtok audit`, as it is typed."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.alignment.pairs import tokenizer
from trl_xtok.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[str, str]:
    """A student's and a teacher's folder."""
    home = tmp_path_factory.mktemp("models")
    for name in ("smollm2", "mistral1"):
        tokenizer(name).save_pretrained(home / name)
    return str(home / "smollm2"), str(home / "mistral1")


@pytest.fixture
def audit(folders, capsys, monkeypatch):
    """Runs the command, and returns its status and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*flags: str, models: tuple[str, ...] = folders) -> tuple[int, str, str]:
        status = main(["audit", *models, *flags])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_text_is_shown_in_the_tokens_of_both(audit):
    status, out, _ = audit("--text", "Hello [bold]world[/bold] 2024")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "Verdict:" in out
    lines = out.splitlines()
    student = next(line for line in lines if line.startswith("student ") and "Hello" in line)
    teacher = lines[lines.index(student) + 1]
    assert "2|0|2|4" in student + teacher or "2 0 2 4" in " ".join((student + teacher).split())
    assert "bold" in student


def test_json_is_all_there_is(audit):
    status, out, _ = audit("--text", "Hello", "--format", "json")
    found = json.loads(out)
    assert (status, found["texts"][0]["name"], found["objective"]) == (0, "text", "chunk_rkl")
    keys = "added level objective samples student teacher texts total verdict vocabulary warnings"
    assert sorted(found) == keys.split()


def test_the_page_asks_for_nothing_and_escapes_all_text(audit, tmp_path):
    page = tmp_path / "audit.html"
    status, out, _ = audit("--text", "<script>alert(1)</script> é", "--format", "html", "--output", str(page))
    html = page.read_text()
    assert (status, out) == (0, f"Written: {page}\n")
    assert "<script" not in html
    assert "&lt;" in html
    assert "://" not in html
    assert 'style="' not in html


def test_a_file_and_a_dataset_are_read(audit, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("Some notes.")
    rows = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there!"}]] * 3
    Dataset.from_dict({"messages": rows}).save_to_disk(tmp_path / "saved")
    status, out, _ = audit(
        "--file", str(file), "--dataset", str(tmp_path / "saved"), "--rows", "2", "--format", "json"
    )
    names = [text["name"] for text in json.loads(out)["texts"]]
    assert (status, names) == (0, [str(file), "messages of saved"])


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("rows.jsonl", '{"completion": "Yes."}\n{"completion": "No."}\n', "completion"),
        ("rows.csv", "a,b\n1,two\n", "b"),
    ],
)
def test_files_of_rows_are_datasets(audit, tmp_path, name, content, column):
    (tmp_path / name).write_text(content)
    flags = [] if column == "completion" else ["--column", column]
    status, out, _ = audit("--dataset", str(tmp_path / name), "--format", "json", *flags)
    assert (status, json.loads(out)["texts"][0]["name"]) == (0, f"{column} of {name}")


def test_what_is_wrong_is_said(audit, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "rows.csv").write_text("a,b\n1,two\n")
    (tmp_path / "rows.xyz").write_text("a")
    student = folders[0]
    rows = str(tmp_path / "rows.csv")
    wrong = [
        ((), ("./nowhere", student), "There is no folder './nowhere'"),
        ((), (str(tmp_path / "empty"), student), "holds no tokenizer: there is none of tokenizer.json"),
        ((), ("no-such-model", student), "The tokenizer of 'no-such-model' cannot be loaded"),
        ((), ("", student), "The name of the model is empty"),
        ((), (rows, student), "rows.csv' is a file. Give the folder of a model"),
        (("--rows", "0"), folders, "`--rows 0` leaves nothing to read"),
        (("--min_coverage", "3"), folders, "`--min_coverage` is a share and must be in [0, 1], got 3.0"),
        (("--output", str(tmp_path)), folders, "is a folder. Name a file in it"),
        (("--dataset", "./rows.json"), folders, "There is no file or folder './rows.json' with data"),
        (("--dataset", str(tmp_path / "empty")), folders, "holds no data: no file in it ends in .json"),
        (("--text", ""), folders, "`--text ''` is empty"),
        (("--file", "nowhere.txt"), folders, "There is no file 'nowhere.txt'"),
        (("--file", str(tmp_path / "latin")), folders, "is not UTF-8 text"),
        (("--dataset", rows), folders, "has the columns ['a', 'b'], none of which is known to hold texts"),
        (("--dataset", rows, "--column", "c"), folders, "has no column 'c', only ['a', 'b']"),
        (("--dataset", str(tmp_path / "rows.xyz")), folders, "ends in none of .json"),
        (("--dataset", "no-such-dataset"), folders, "The dataset 'no-such-dataset' cannot be loaded"),
        (("--column", "a"), folders, "Add `--dataset`"),
        (("--format", "html"), folders, "Say which one with `--output audit.html`"),
        (("--chat_template_path", "nowhere.jinja"), folders, "There is no chat template at 'nowhere.jinja'"),
    ]
    for flags, models, message in wrong:
        status, out, err = audit(*flags, models=models)
        assert (status, out) == (1, ""), flags
        assert err.startswith("trl-xtok audit: error: ")
        assert message in err


def test_the_written_file_is_what_the_terminal_would_show(audit, tmp_path):
    status, out, _ = audit("--output", str(tmp_path / "audit.txt"))
    assert (status, out) == (0, f"Written: {tmp_path / 'audit.txt'}\n")
    assert "Verdict:" in Path(tmp_path / "audit.txt").read_text()
