"""What a run logs, what an evaluation reports, and what happens to that which cannot be scored."""

import math

import pytest
import torch

from tests import real_tokenizers
from tests.training.runs import changed, keep_best, logged, parameters_of, shared_tokenizers, write
from tests.training.tiny_models import PROMPTS, prompt_dataset, save, tiny_model
from trl_xtok.errors import CoverageError
from trl_xtok.training.metrics import DROP_REASONS


# What users chart; a name that changes breaks their dashboards.
LOGGED = {
    *("loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens", "step_time", "entropy"),
    *("xtok/coverage", "xtok/reverse_kl_per_byte", "xtok/noncanonical_ratio", "xtok/stop_rate"),
    "xtok/clipped_advantages",
    *(f"xtok/dropped_{reason}" for reason in DROP_REASONS),
    *(f"completions/{name}" for name in ("mean_length", "min_length", "max_length", "clipped_ratio")),
    *(f"time/{phase}" for phase in ("rollout", "align", "teacher", "student")),
}
# Only where a completion ended with a stop token.
LOGGED_WITH_STOPS = {
    "xtok/reverse_kl_end",
    *(f"completions/{name}_terminated_length" for name in ("mean", "min", "max")),
}


@pytest.fixture
def build(make_trainer):
    """The trainer for the shared models; their tokenizers are read once for all tests."""

    def build_trainer(*, arguments=None, **changes):
        return make_trainer(arguments=shared_tokenizers() | (arguments or {}), **changes)

    return build_trainer


# Logs and evaluation.


def test_a_training_step_logs_what_is_documented(build):
    trainer = build(max_steps=2)
    write(trainer, " red, green and blue")
    trainer.train()
    for entry in logged(trainer):
        assert entry.keys() == LOGGED | LOGGED_WITH_STOPS


def test_a_step_without_stops_logs_no_numbers_about_them(build):
    trainer = build()
    write(trainer, " red, green and blue", stop=False)
    trainer.train()
    (entry,) = logged(trainer)
    assert entry.keys() == LOGGED
    assert entry["completions/clipped_ratio"] == 1
    assert entry["xtok/dropped_unfinished"] > 0


def test_logged_tokens_are_prompts_and_completions_of_the_whole_run(build):
    trainer = build(max_steps=4, gradient_accumulation_steps=2, per_device_train_batch_size=1)
    write(trainer, " red, green and blue")
    trainer.train()
    prompts = sum(len(trainer.processing_class.encode(prompt)) for prompt in PROMPTS)
    completion = len(trainer.processing_class.encode(" red, green and blue")) + 1
    assert logged(trainer)[-1]["num_tokens"] == prompts + len(PROMPTS) * completion
    assert logged(trainer)[0]["step_time"] > 0


def test_steps_between_logs_are_put_together(build):
    trainer = build(max_steps=4, logging_steps=2)
    trainer.train()
    assert [entry["step"] for entry in logged(trainer)] == [2, 4]
    assert all(0 <= entry["xtok/coverage"] <= 1 for entry in logged(trainer))


def test_evaluation_reports_the_loss_and_our_metrics(build):
    trainer = build(arguments={"eval_dataset": prompt_dataset()})
    metrics = trainer.evaluate()
    ours = (LOGGED - {"loss", "grad_norm", "learning_rate", "epoch", "step"}) | {"loss"}
    assert metrics.keys() >= {f"eval_{name}" for name in ours}
    assert math.isfinite(metrics["eval_loss"])
    assert 0 < metrics["eval_xtok/coverage"] < 1
    assert trainer.state.log_history[-1]["eval_xtok/coverage"] == metrics["eval_xtok/coverage"]


def without_clock(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not any(x in name for x in ("time", "per_second"))}


def test_evaluation_is_the_same_when_repeated(build):
    trainer = build(arguments={"eval_dataset": prompt_dataset()})
    torch.manual_seed(1)
    first = trainer.evaluate()
    torch.manual_seed(2)
    assert without_clock(trainer.evaluate()) == without_clock(first)


def test_evaluation_leaves_the_training_as_it_was(build):
    """Neither the samples nor the metrics of training depend on whether there is an evaluation in between."""

    def losses(**changes):
        trainer = build(arguments={"eval_dataset": prompt_dataset()}, max_steps=3, **changes)
        trainer.train()
        return [without_clock(entry) for entry in logged(trainer)]

    assert losses(eval_strategy="steps", eval_steps=1) == losses()


def test_several_evaluation_datasets_are_reported_by_name(build):
    trainer = build(arguments={"eval_dataset": {"a": prompt_dataset(PROMPTS[:2]), "b": prompt_dataset()}})
    metrics = trainer.evaluate()
    assert 0 < metrics["eval_a_num_tokens"] < metrics["eval_b_num_tokens"]
    assert {"eval_a_loss", "eval_b_loss"} <= metrics.keys()


def test_a_dataset_can_be_evaluated_without_being_named_before(build):
    metrics = build().evaluate(prompt_dataset(PROMPTS[:2]), metric_key_prefix="held_out")
    assert "held_out_xtok/coverage" in metrics


def test_the_best_checkpoint_can_be_chosen_by_our_metrics(build):
    trainer = build(
        arguments={"eval_dataset": prompt_dataset(PROMPTS[:2])},
        **keep_best("eval_xtok/coverage", steps=2),
    )
    trainer.train()
    assert trainer.state.best_metric is not None


# What cannot be scored is dropped and counted, and the rest is trained on.


def test_a_run_of_which_too_little_is_trained_on_stops(build):
    trainer = build(min_coverage=0.9, max_steps=6)
    write(trainer, " red, green", stop=False)
    with pytest.raises(CoverageError, match=r"for 3 optimizer steps in a row.*`unfinished`"):
        trainer.train()
    assert trainer.state.global_step == 2


def test_low_coverage_in_evaluation_does_not_stop_a_run(build):
    trainer = build(arguments={"eval_dataset": prompt_dataset()}, min_coverage=0.9, per_device_eval_batch_size=1)
    write(trainer, " red, green", stop=False)
    assert trainer.evaluate()["eval_xtok/coverage"] < 0.9


class SaysNothingAt:
    """A teacher that cannot score some of its tokens."""

    def __init__(self, teacher, unknown: dict[int, float]):
        self.teacher, self.unknown, self.name = teacher, unknown, teacher.name
        self.on_device, self.expect, self.reach = teacher.on_device, teacher.expect, teacher.reach

    def token_logps(self, prompts, completions):
        logps = self.teacher.token_logps(prompts, completions)
        starts = [sum(map(len, completions[:row])) for row in range(len(completions))]
        for start in starts:
            for index, value in self.unknown.items():
                logps[start + index] = value
        return logps


def test_tokens_that_the_teacher_cannot_score_are_dropped_and_counted(build):
    trainer = build()
    text = " red, green and blue"
    write(trainer, text)
    trainer.teachers = {"": SaysNothingAt(trainer.teacher, {0: math.nan, 1: -math.inf, 4: math.nan})}
    ids = [*trainer.processing_class.encode(text, add_special_tokens=False), trainer.processing_class.eos_token_id]
    alignment = trainer.aligner.align(ids)
    lost = {alignment.teacher_chunks[index] for index in (0, 1, 4)}
    dropped = sum(chunk in lost for chunk in alignment.student_chunks)
    assert 0 < dropped < len(ids)

    trainer.train()
    (entry,) = logged(trainer)
    assert entry["xtok/dropped_teacher"] == pytest.approx(dropped / len(ids))
    assert entry["xtok/coverage"] == pytest.approx(1 - dropped / len(ids))
    assert math.isfinite(entry["loss"])
    assert 0 < entry["grad_norm"] < math.inf


def test_a_teacher_that_can_score_nothing_changes_nothing(build):
    trainer = build()
    write(trainer, " red")
    trainer.teacher.token_logps = lambda prompts, completions: torch.full((sum(map(len, completions)),), math.nan)
    before = parameters_of(trainer.model)
    trainer.train()
    (entry,) = logged(trainer)
    assert (entry["loss"], entry["xtok/coverage"], entry["xtok/dropped_teacher"]) == (0, 0, 1)
    assert not changed(before, trainer.model)


def test_what_lies_beyond_the_teachers_context_is_dropped_and_counted(build, tmp_path):
    model = tiny_model("llama", 32000, max_position_embeddings=24)
    short = save(model, real_tokenizers.mistral1(), tmp_path / "short")
    trainer = build(teacher=short, arguments={"train_dataset": prompt_dataset(["Hi", "You"])}, max_new_tokens=20)
    # The teacher spells each of them in four bytes.
    write(trainer, " 🫠" * 8)
    trainer.train()
    (entry,) = logged(trainer)
    assert entry["xtok/dropped_teacher"] > 0
    assert 0 < entry["xtok/coverage"] < 1
    assert math.isfinite(entry["loss"])
    assert entry["grad_norm"] > 0
