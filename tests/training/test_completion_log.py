"""The completions that a run shows and keeps: their texts, figures, places."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from tests.training.fixed_rollouts import FixedTrainer, rollouts, stop, text
from tests.training.runs import logged, shared_tokenizers, write
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok.training.data import unpad


COLUMNS = ["step", "prompt", "completion", "on_policy", "reverse_kl_per_byte", "coverage"]


@pytest.fixture
def build(make_trainer):
    """A trainer that logs completions; the tokenizers are read once for all tests."""

    def build_trainer(*, arguments=None, **changes):
        return make_trainer(arguments=shared_tokenizers() | (arguments or {}), **{"log_completions": True} | changes)

    return build_trainer


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "completions").iterdir())


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / "completions" / name)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory, padded_student_path, byteless_teacher_path):
    """One step over all troublesome rollouts, accumulated: its log, and its completions as they were kept."""
    folder = tmp_path_factory.mktemp("fixed")
    args = tiny_args(folder, log_completions=True, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer = tiny_trainer(padded_student_path, byteless_teacher_path, args, trainer_class=FixedTrainer)
    trainer.rollouts = rollouts()
    trainer.train()
    return trainer.state.log_history[0], read(folder, "completions_00001.parquet").set_index("prompt")


def test_every_completion_of_the_step_is_kept_with_its_prompt(fixed):
    _, table = fixed
    assert sorted(table.index) == sorted(PROMPTS)
    assert ["prompt", *table.columns] == ["prompt", *(name for name in COLUMNS if name != "prompt")]
    assert set(table["step"]) == {1}
    assert set(table["on_policy"]) == {True}
    # The stop token is not shown, as in TRL; a byte that is no character is.
    assert table.loc["Hi", "completion"] == " Hello there!!"
    assert table.loc["def add(a, b):\n    return", "completion"].startswith(" a\ufffd b, then")


def test_figures_of_completions_come_to_those_of_the_log(fixed):
    log, table = fixed
    lengths = {prompt: len(ids) for prompt, ids in rollouts().items()}
    covered = sum(table.loc[prompt, "coverage"] * length for prompt, length in lengths.items() if length)
    assert covered / sum(lengths.values()) == pytest.approx(log["xtok/coverage"])
    # " Hello there!!" is scored whole, all of " \U0001f600..." is not.
    assert table.loc["Hi", "coverage"] == 1
    assert 0 < table["coverage"].min() < 1


def test_what_has_no_text_has_no_figures(fixed):
    _, table = fixed
    empty, stopped = (table.loc[PROMPTS[number]] for number in (5, 6))
    assert empty["completion"] == stopped["completion"] == ""
    assert pd.isna(empty["coverage"])
    assert pd.isna(empty["reverse_kl_per_byte"])
    assert stopped["coverage"] == 1
    assert pd.isna(stopped["reverse_kl_per_byte"]), "an end is no text"


def test_the_reverse_kl_of_completions_is_weighed_by_bytes_in_the_log(tmp_path, padded_student_path, teacher_path):
    args = tiny_args(tmp_path, log_completions=True, per_device_train_batch_size=8, learning_rate=0.0)
    trainer = tiny_trainer(padded_student_path, teacher_path, args, trainer_class=FixedTrainer)
    texts = {prompt: f" answer {number**5} to it" for number, prompt in enumerate(PROMPTS)}
    trainer.rollouts = {prompt: text(answer) + stop() for prompt, answer in texts.items()}
    trainer.train()
    table = read(tmp_path, "completions_00001.parquet")
    sizes = table["completion"].str.len()
    expected = (table["reverse_kl_per_byte"] * sizes).sum() / sizes.sum()
    assert table["reverse_kl_per_byte"].std() > 0
    assert logged(trainer)[0]["xtok/reverse_kl_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_messages_are_shown_as_the_student_read_them(build, tmp_path):
    messages = [{"prompt": [{"role": "user", "content": f"Say {word}!"}]} for word in ("red", "blue")]
    dataset = prompt_dataset().from_list(messages)
    trainer = build(arguments={"train_dataset": dataset})
    write(trainer, "No.")
    trainer.train()
    table = read(tmp_path, "completions_00001.parquet")
    batch = trainer.data_collator(messages)
    prompts = unpad(batch["prompts"], batch["prompt_attention_mask"])
    shown = [trainer.processing_class.decode(prompt, skip_special_tokens=True) for prompt in prompts]
    assert sorted(table["prompt"]) == sorted(shown)
    assert all("<|im_start|>" not in prompt for prompt in shown)
    assert table["completion"].tolist() == ["No.", "No."]


def test_one_file_per_log_holds_the_last_step_before_it(build, tmp_path, capsys):
    trainer = build(max_steps=5, logging_steps=2)
    trainer.train()
    kinds = ("chunks", "completions")
    assert files(tmp_path) == [f"{kind}_0000{step}.parquet" for kind in kinds for step in (2, 4, 5)]
    assert read(tmp_path, "completions_00004.parquet").shape == (2, len(COLUMNS))
    printed = capsys.readouterr().out
    assert [printed.count(f" Step {step} ") for step in (1, 2, 3, 4, 5)] == [0, 1, 0, 1, 1]
    assert "reverse_kl" in printed


def test_nothing_is_kept_unless_asked_for(build, tmp_path, capsys):
    build(log_completions=False, arguments={"eval_dataset": prompt_dataset()}, eval_strategy="steps").train()
    assert not (tmp_path / "completions").exists()
    assert "Step" not in capsys.readouterr().out


def test_logging_completions_leaves_the_run_as_it_was(build):
    """Though a random sample of them is printed."""

    def run(**changes):
        trainer = build(max_steps=2, arguments={"eval_dataset": prompt_dataset()}, eval_strategy="steps", **changes)
        trainer.train()
        keys = ("loss", "grad_norm", "xtok/coverage", "eval_loss", "eval_xtok/coverage")
        return [[entry[key] for key in keys if key in entry] for entry in trainer.state.log_history]

    assert run(num_completions_to_print=1) == run(log_completions=False)


@pytest.mark.parametrize(("number", "shown"), [(None, 2), (1, 1), (0, 0)])
def test_so_many_completions_are_printed(build, tmp_path, capsys, number, shown):
    trainer = build(num_completions_to_print=number)
    write(trainer, " Yes")
    trainer.train()
    assert capsys.readouterr().out.count("Yes") == shown
    assert len(read(tmp_path, "completions_00001.parquet")) == 2


def test_completions_of_evaluations_have_their_own_files(build, tmp_path, capsys):
    sets = {"a": prompt_dataset(PROMPTS[:3]), "b": prompt_dataset(PROMPTS)}
    trainer = build(arguments={"eval_dataset": sets}, eval_strategy="steps", eval_steps=1)
    trainer.train()
    names = [f"{prefix}{kind}" for prefix in ("", "eval_a_", "eval_b_") for kind in ("chunks", "completions")]
    assert files(tmp_path) == [f"{name}_00001.parquet" for name in names]
    # In the order of the dataset, the last and smaller batch too.
    assert read(tmp_path, "eval_a_completions_00001.parquet")["prompt"].tolist() == PROMPTS[:3]
    assert read(tmp_path, "eval_b_completions_00001.parquet")["prompt"].tolist() == PROMPTS
    assert "Step 1 (eval_a)" in capsys.readouterr().out


def test_an_evaluation_dataset_may_be_called_like_a_repository(build, tmp_path):
    build(arguments={"eval_dataset": {"org/name": prompt_dataset(["Hi"])}}).evaluate()
    assert files(tmp_path) == ["eval_org_name_chunks_00000.parquet", "eval_org_name_completions_00000.parquet"]


def test_completions_that_the_student_did_not_write_have_no_reverse_kl(build, tmp_path):
    dataset = prompt_dataset(PROMPTS[:2]).add_column("completion", [" red.", " green."])
    trainer = build(arguments={"train_dataset": dataset}, lmbda=0.0, objective="chunk_jsd")
    trainer.train()
    table = read(tmp_path, "completions_00001.parquet")
    assert sorted(table["completion"]) == [" green.", " red."]
    assert not table["on_policy"].any()
    assert table["reverse_kl_per_byte"].isna().all()
    assert (table["coverage"] > 0).all()


# The two are not installed, so these stand-ins show no more than that we call what TRL calls.


class Tracker(SimpleNamespace):
    """Both in one: wandb shows its run as `run`, trackio in a context variable."""

    def __init__(self, run: object):
        current = SimpleNamespace(current_run=SimpleNamespace(get=lambda: run))
        super().__init__(run=run, context_vars=current, logged=[])

    def log(self, values: dict[str, object]) -> None:
        self.logged.append(values)

    def Table(self, *, dataframe: pd.DataFrame) -> pd.DataFrame:
        return dataframe


@pytest.mark.parametrize("unique", [False, True])
def test_trackers_get_a_table(build, monkeypatch, unique):
    trackers = {"wandb": Tracker(run=object()), "trackio": Tracker(run=object())}
    for name, tracker in trackers.items():
        monkeypatch.setitem(sys.modules, name, tracker)
    trainer = build(
        arguments={"train_dataset": prompt_dataset(["Hi", "Hi"]), "eval_dataset": prompt_dataset(["Why?"])},
        log_unique_prompts=unique,
        eval_strategy="steps",
        eval_steps=1,
    )
    trainer.args.report_to = list(trackers)
    trainer.train()
    for tracker in trackers.values():
        (train, table), (evaluation, eval_table) = (next(iter(values.items())) for values in tracker.logged)
        assert (train, evaluation) == ("completions", "eval_completions")
        assert table["prompt"].tolist() == ["Hi"] * (1 if unique else 2)
        assert eval_table["prompt"].tolist() == ["Why?"]
        assert list(table) == COLUMNS


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_without_a_run_gets_nothing(build, monkeypatch, name):
    """As before training, and after it."""
    monkeypatch.setitem(sys.modules, name, tracker := Tracker(run=None))
    trainer = build()
    trainer.args.report_to = [name]
    trainer.evaluate(prompt_dataset(["Hi"]))
    assert not tracker.logged
