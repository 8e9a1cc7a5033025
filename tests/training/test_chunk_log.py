"""Completions token by token: the numbers in the file are those that the run was trained with."""

import pyarrow.parquet as pq
import pytest

from tests.training.fixed_rollouts import FixedTrainer, rollouts
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok.training.chunk_log import CHUNK_ROWS, SCHEMA


@pytest.fixture(scope="module")
def run(tmp_path_factory, padded_student_path, byteless_teacher_path):
    """One step over all troublesome rollouts: the trainer's folder and its log."""
    folder = tmp_path_factory.mktemp("chunks")
    args = tiny_args(folder, log_completions=True, per_device_train_batch_size=8, num_completions_to_print=0)
    trainer = tiny_trainer(padded_student_path, byteless_teacher_path, args, trainer_class=FixedTrainer)
    trainer.rollouts = rollouts()
    trainer.train()
    return folder, trainer


@pytest.fixture(scope="module")
def rows(run):
    folder, _ = run
    table = pq.read_table(folder / "completions" / "chunks_00001.parquet")
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def test_a_few_completions_are_kept_as_they_were_sampled(rows):
    assert len(rows) == CHUNK_ROWS
    assert all(row["student_ids"] == rollouts()[row["prompt"]] for row in rows)
    assert {row["step"] for row in rows} == {1}


def test_tokens_are_bytes_that_spell_the_completion(rows):
    for row in rows:
        spelled = [token for token in row["student_tokens"] if token and not token.startswith(b"<|im_end|>")]
        assert b"".join(spelled).decode(errors="replace") == row["completion"]


def test_both_sides_spell_the_same_bytes_in_a_chunk(rows):
    for row in rows:
        stops = row["student_chunks"][-1] if row["student_tokens"][-1:] == [b"<|im_end|>"] else None
        for chunk in {number for number in row["student_chunks"] if number >= 0} - {stops}:
            sides = [
                b"".join(
                    token
                    for token, number in zip(row[f"{side}_tokens"], row[f"{side}_chunks"], strict=True)
                    if number == chunk
                )
                for side in ("student", "teacher")
            ]
            assert sides[0] == sides[1]


def test_advantages_conserve_the_signal_of_their_chunk(rows):
    """The paper's rule, where nothing was clipped."""
    seen = 0
    for row in rows:
        for chunk in {number for number in row["student_chunks"] if number >= 0}:
            ours = [place for place, number in enumerate(row["student_chunks"]) if number == chunk]
            theirs = [place for place, number in enumerate(row["teacher_chunks"]) if number == chunk]
            advantages = [row["advantages"][place] for place in ours]
            if None in advantages or max(map(abs, advantages)) >= 10:
                continue
            student = sum(row["student_logps"][place] for place in ours)
            teacher = sum(row["teacher_logps"][place] for place in theirs)
            assert sum(advantages) == pytest.approx(teacher - student, abs=1e-3)
            seen += 1
    assert seen > 5


def test_what_is_not_trained_on_has_a_reason_and_no_advantage_unless_it_is_charged(rows):
    reasons = {reason for row in rows for reason in row["drop_reasons"]}
    assert {"unfinished", "invalid_utf8", None} <= reasons
    for row in rows:
        for reason, advantage in zip(row["drop_reasons"], row["advantages"], strict=True):
            assert (advantage is None) == (reason is not None and reason not in ("invalid_utf8", "unknown_id"))


def test_evaluations_keep_the_same_prompts_every_time(make_trainer, tmp_path):
    trainer = make_trainer(
        max_steps=2,
        log_completions=True,
        num_completions_to_print=0,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=3,
        arguments={"eval_dataset": prompt_dataset()},
    )
    trainer.train()
    for step in (1, 2):
        kept = pq.read_table(tmp_path / "completions" / f"eval_chunks_0000{step}.parquet").to_pylist()
        assert [row["prompt"] for row in kept] == PROMPTS[:CHUNK_ROWS]


def test_what_the_student_did_not_write_is_not_kept(make_trainer, tmp_path):
    dataset = prompt_dataset(PROMPTS[:2]).add_column("completion", [" red.", " green."])
    make_trainer(arguments={"train_dataset": dataset}, lmbda=0.0, objective="chunk_jsd", log_completions=True).train()
    assert [path.name for path in (tmp_path / "completions").iterdir()] == ["completions_00001.parquet"]


def test_nothing_is_kept_unless_asked_for(make_trainer, tmp_path):
    make_trainer().train()
    assert not (tmp_path / "completions").exists()
