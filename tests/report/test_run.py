"""What is read of a folder: whole runs, cut-off ones, resumed ones, and those that left little."""

import json

import pytest

from tests.report.folders import START, chunk_row, entry, evaluation, whole_run, write_chunks, write_completions
from tests.report.folders import write_history as history
from trl_xtok.errors import ReportError
from trl_xtok.report.run import read_run


def steps(run) -> list[int]:
    return [entry["step"] for entry in run.entries]


def test_a_whole_run(tmp_path):
    run = read_run(whole_run(tmp_path))
    assert steps(run) == [0, *range(1, 21), 20, 20]
    assert run.start == START
    assert (run.is_finished, run.last_step, run.notes) == (True, 20, [])
    assert [(table.kind, table.step) for table in run.completions] == [("", 10), ("eval", 0), ("eval", 20)]
    assert [(table.kind, table.step) for table in run.chunks] == [("eval", 0), ("eval", 20)]


def test_what_a_resumed_run_trains_again_is_there_once(tmp_path):
    history(tmp_path, [evaluation(0), *(entry(step, loss=1.0) for step in range(1, 8))])
    history(tmp_path, [entry(step, loss=2.0) for step in range(6, 11)], START | {"step": 5})
    run = read_run(tmp_path)
    assert steps(run) == [*range(11)]
    assert [entry["loss"] for entry in run.entries[1:]] == [1.0] * 5 + [2.0] * 5


def test_a_run_that_goes_on_after_its_end_has_not_ended(tmp_path):
    history(tmp_path, [entry(1), {"step": 1, "train_runtime": 3.0}])
    history(tmp_path, [entry(2)], START | {"step": 1})
    assert not read_run(tmp_path).is_finished


def test_a_new_run_in_the_same_folder_takes_its_place(tmp_path):
    history(tmp_path, [evaluation(0, accuracy=0.1), *(entry(step) for step in range(1, 9))])
    write_completions(tmp_path, 8, {"Hi": "of the old run"})
    history(tmp_path, [entry(1), entry(2)], START | {"objective": "hybrid"})
    write_completions(tmp_path, 2, {"Hi": "of the new run"})
    run = read_run(tmp_path)
    assert (steps(run), run.start["objective"]) == ([1, 2], "hybrid")
    assert [table.step for table in run.completions] == [2]


def test_a_run_that_was_killed_while_it_wrote(tmp_path):
    with (history(tmp_path, [entry(1), entry(2)]) / "run_history.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 0.')
    (tmp_path / "completions").mkdir()
    (tmp_path / "completions" / "completions_00002.parquet").write_bytes(b"PAR1 cut off")
    write_chunks(tmp_path, 2, [chunk_row()])
    run = read_run(tmp_path)
    assert (steps(run), run.is_finished, len(run.chunks)) == ([1, 2], False, 1)
    assert run.notes[0].startswith("1 lines of run_history.jsonl are no entries")
    assert run.notes[1].startswith("completions_00002.parquet could not be read")


def test_without_a_history_the_latest_checkpoint_is_read(tmp_path):
    for step in (5, 10):
        (folder := tmp_path / f"checkpoint-{step}").mkdir()
        state = {
            "global_step": step,
            "log_history": [entry(number, loss=float("nan")) for number in range(1, step + 1)],
        }
        (folder / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / "checkpoint-15" / "trainer_state.json").write_text('{"global_step": 15, "log_h')
    run = read_run(tmp_path)
    assert (steps(run), run.start) == ([*range(1, 11)], {})
    assert run.notes == [note for note in run.notes if note.startswith("checkpoint-15/trainer_state.json could not")]
    assert steps(read_run(tmp_path / "checkpoint-5")) == [1, 2, 3, 4, 5]


def test_completions_alone_are_a_run(tmp_path):
    write_completions(tmp_path, 3, {"Hi": "Hello"})
    assert [table.step for table in read_run(tmp_path).completions] == [3]


def test_of_very_many_files_the_first_and_the_last_are_read(tmp_path):
    for step in range(1, 101):
        write_completions(tmp_path, step, {"Hi": "Hello"})
    found = [table.step for table in read_run(tmp_path).completions]
    assert (found[0], found[-1], len(found)) == (1, 100, 80)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({}, "In it: nothing. Give the `output_dir` of a run that has logged once", id="empty"),
        pytest.param({"model.safetensors": ""}, "In it: model.safetensors", id="only a model"),
        pytest.param({"run_history.jsonl": '{"start": {"step": 0}}\n'}, "nothing that", id="nothing logged"),
        pytest.param({"run_history.jsonl": "\x00\x01"}, "1 lines of run_history.jsonl are no entries", id="no JSON"),
        pytest.param({"run_history.jsonl": '[1]\n{"loss": 2}\n'}, "1 lines", id="JSON of something else"),
    ],
)
def test_a_folder_without_a_run_is_refused(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        read_run(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"There is no folder .*nowhere"):
        read_run(tmp_path / "nowhere")
