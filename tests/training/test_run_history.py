"""The history that every run leaves, and what a report makes of a real run."""

import json

import pytest

from tests.training.runs import lora, write
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.report.run import read_run
from trl_xtok.report.run_page import run_page


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run_history.jsonl").read_text().splitlines()]


def test_a_run_that_saves_nothing_leaves_its_history(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=3, arguments={"peft_config": lora(), "eval_dataset": prompt_dataset(PROMPTS[:2])})
    before = trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    start, *entries = lines(tmp_path)
    assert start["start"]["objective"] == "chunk_rkl"
    assert start["start"]["student"]["name"].startswith("student")
    assert 0 < start["start"]["student"]["trained"] < start["start"]["student"]["parameters"]
    assert start["start"]["settings"]["max_steps"] == 3
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3, 3, 3]
    assert entries[0]["eval_loss"] == before["eval_loss"]
    assert entries[1:-1] == trainer.state.log_history[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run_history.jsonl"]
    assert "3 of 3 steps; the run came to its end" in run_page(read_run(tmp_path))


def test_a_folder_that_may_be_published_names_no_path_and_no_token(make_trainer, tmp_path):
    make_trainer(hub_token="hf_secret", data_seed=7).train()
    text = (tmp_path / "run_history.jsonl").read_text()
    assert str(tmp_path) not in text
    assert str(tmp_path.parent) not in text
    assert "hf_secret" not in text
    assert json.loads(text.splitlines()[0])["start"]["settings"]["data_seed"] == 7


def test_a_resumed_run_goes_on_in_the_same_history(make_trainer, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(max_steps=3, **changes).train()
    resumed = make_trainer(max_steps=4, arguments={"eval_dataset": prompt_dataset(PROMPTS[:2])}, **changes)
    # What is evaluated before belongs to the model as it was loaded, not to step 0 of the run.
    resumed.evaluate()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    run = read_run(tmp_path)
    assert [entry["step"] for entry in run.entries] == [1, 2, 3, 4, 4]
    assert run.start["step"] == 2
    logged = [entry for entry in resumed.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in run.entries if "loss" in entry] == [entry["loss"] for entry in logged]


def test_numbers_that_are_none_are_written_as_json(make_trainer, tmp_path):
    trainer = make_trainer()
    write(trainer, " red")
    trainer.log = lambda logs, start_time=None: type(trainer).log(trainer, logs | {"bad": float("nan")}, start_time)
    trainer.train()
    assert lines(tmp_path)[1]["bad"] is None


@pytest.mark.parametrize("objective", ["chunk_rkl", "chunk_jsd"])
def test_a_report_of_a_real_run_shows_its_tokens(make_trainer, tmp_path, objective):
    trainer = make_trainer(
        max_steps=2,
        log_completions=True,
        objective=objective,
        num_completions_to_print=0,
        eval_strategy="steps",
        eval_steps=1,
        arguments={"eval_dataset": prompt_dataset(PROMPTS[:2])},
    )
    trainer.train()
    html = run_page(read_run(tmp_path))
    assert html.count('<article class="picture') == 8, "two prompts, two steps, training and evaluation"
    assert ("gives tokens no advantage" in html) == (objective == "chunk_jsd")
