"""A run goes on from the last checkpoint that was written to its end, whenever it was killed."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from transformers import TrainerState

from tests.training.kill_and_resume import KINDS, kill_and_resume
from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import tiny_args, tiny_trainer
from trl_xtok.errors import CheckpointError
from trl_xtok.training.checkpoints import check_complete, last_complete, what_lacks


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.fixture
def build(make_trainer):
    return lambda **changes: make_trainer(
        arguments=shared_tokenizers(), **{"save_strategy": "steps", "save_steps": 1, "max_new_tokens": 3} | changes
    )


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, student_path, teacher_path):
    """A folder with the checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("two_steps")
    args = tiny_args(folder, save_strategy="steps", save_steps=1, max_steps=2, max_new_tokens=3)
    tiny_trainer(student_path, teacher_path, args, **shared_tokenizers()).train()
    return folder


@pytest.fixture
def saved(two_steps, tmp_path):
    """A copy of it."""
    for checkpoint in two_steps.glob("checkpoint-*"):
        shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    return tmp_path


def test_the_state_is_written_last(build, tmp_path, monkeypatch):
    """What the test of completeness rests on."""
    seen = []
    write = TrainerState.save_to_json

    def record(self, path):
        seen.append({file.name for file in Path(path).parent.iterdir()})
        write(self, path)

    monkeypatch.setattr(TrainerState, "save_to_json", record)
    build().train()
    assert {file.name for file in (tmp_path / "checkpoint-1").iterdir()} - seen[0] == {"trainer_state.json"}
    assert set(FILES) - seen[0] == {"trainer_state.json"}


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_a_checkpoint_without_one_of_its_files_is_skipped_with_a_warning(saved, name, caplog):
    assert last_complete(str(saved)) == str(saved / "checkpoint-2")
    (saved / "checkpoint-2" / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert last_complete(str(saved)) == str(saved / "checkpoint-1")
    assert f"Skipping {saved / 'checkpoint-2'}: {name} missing" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_state_that_is_cut_off_is_no_state(saved, length):
    state = saved / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:length])
    assert "trainer_state.json is cut off" in what_lacks(str(saved / "checkpoint-2"))
    assert last_complete(str(saved)) == str(saved / "checkpoint-1")


def test_numbers_are_compared_as_numbers(saved):
    shutil.copytree(saved / "checkpoint-2", saved / "checkpoint-10")
    assert last_complete(str(saved)) == str(saved / "checkpoint-10")


def test_a_folder_without_a_complete_checkpoint_is_refused(saved, tmp_path):
    for checkpoint in saved.glob("checkpoint-*"):
        (checkpoint / "trainer_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"2 found, none of them complete. Leave `resume_from_checkpoint` out"):
        last_complete(str(saved))
    with pytest.raises(CheckpointError, match="0 found"):
        last_complete(str(tmp_path / "nowhere"))


def test_a_checkpoint_that_is_named_must_be_complete(saved):
    assert check_complete(str(saved / "checkpoint-1")) == str(saved / "checkpoint-1")
    (saved / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer.pt missing.*or with `save_only_model=True`. Give another"):
        check_complete(str(saved / "checkpoint-2"))


def test_training_goes_on_from_the_last_complete_one(build, saved):
    (saved / "checkpoint-2" / "trainer_state.json").unlink()
    trainer = build(max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]
    assert what_lacks(str(saved / "checkpoint-2")) is None, "it was written once more"


def test_the_argument_names_a_checkpoint_too(build, saved):
    trainer = build(max_steps=2, resume_from_checkpoint=str(saved / "checkpoint-1"), save_strategy="no")
    earlier = json.loads((saved / "checkpoint-1" / "trainer_state.json").read_text())["log_history"]
    trainer.train()
    assert trainer.state.log_history[: len(earlier)] == earlier
    trainer = build(max_steps=2, resume_from_checkpoint=str(saved / "checkpoint-3"), save_strategy="no")
    with pytest.raises(CheckpointError, match="checkpoint-3"):
        trainer.train()


class Killed(Exception):
    pass


def test_a_checkpoint_of_another_run_does_not_complete_one_that_is_cut_off(build, saved, monkeypatch):
    """The folder of step 2 is written once more, and the run dies after the weights."""
    trainer = build(max_steps=2)
    save_model = trainer.save_model

    def die(*args, **kwargs):
        save_model(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(trainer, "save_model", die)
    with pytest.raises(Killed):
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-1"))
    assert what_lacks(str(saved / "checkpoint-2")) == "trainer_state.json missing"


def survive(folder, student, teacher, kind, kills):
    hits = kill_and_resume(folder, (student, teacher), kind, kills=kills)
    assert hits["training"] + hits["saving"] == kills
    return hits


def test_a_killed_run_ends_as_one_that_was_left_alone(tmp_path, student_path, teacher_path):
    """Two kills, one at any time and one while a checkpoint is being written."""
    survive(tmp_path / "runs", student_path, teacher_path, "full", 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_killed_runs_end_as_one_that_was_left_alone(tmp_path, student_path, teacher_path, kind):
    assert survive(tmp_path / "runs", student_path, teacher_path, kind, 20)["saving"] > 0
