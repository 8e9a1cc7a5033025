"""The metric that checkpoints are chosen by: less of a divergence is better, and some losses are none."""

import pytest

from tests.training.runs import keep_best, logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError


DIVERGENCE = "xtok/reverse_kl_per_byte"
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}


def config(**changes) -> CrossTokenizerGKDConfig:
    return CrossTokenizerGKDConfig("out", **changes)


@pytest.mark.parametrize(
    ("objective", "metric"),
    [("auto", DIVERGENCE), ("chunk_rkl", DIVERGENCE), ("prefix_jsd", DIVERGENCE), ("chunk_jsd", "loss")],
)
@pytest.mark.parametrize("needs", [BEST, {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}])
def test_without_a_metric_less_divergence_is_better(objective, metric, needs):
    args = config(objective=objective, **needs)
    assert (args.metric_for_best_model, args.greater_is_better) == (metric, False)


def test_where_no_metric_is_needed_there_is_none():
    assert config().metric_for_best_model is None


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        (f"eval_{DIVERGENCE}", False),
        (f"eval_a_{DIVERGENCE}", False),
        ("xtok/dropped_unfinished", False),
        ("completions/clipped_ratio", False),
        ("eval_xtok/coverage", True),
        ("xtok/stop_rate", True),
        ("accuracy", True),
    ],
)
def test_what_is_better_follows_from_the_metric(metric, greater):
    assert config(metric_for_best_model=metric, **BEST).greater_is_better is greater
    assert config(metric_for_best_model=metric, greater_is_better=not greater, **BEST).greater_is_better is not greater


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "eval_unmatched_loss"])
@pytest.mark.parametrize("objective", ["chunk_rkl", "hybrid", "prefix_jsd"])
def test_a_loss_that_rises_while_the_student_improves_is_refused(objective, metric):
    with pytest.raises(ConfigError, match=f"`metric_for_best_model='{metric}'` would choose the worst checkpoint"):
        config(objective=objective, metric_for_best_model=metric, **BEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "chunk_jsd"},
        {"objective": "prefix_jsd", "chunk_weight": 0.0},
        {"objective": "chunk_rkl", "eval_on_dataset": True},
    ],
)
def test_a_divergence_as_loss_is_a_metric(changes):
    assert config(metric_for_best_model="loss", **changes, **BEST).greater_is_better is False


@pytest.mark.parametrize("metric", ["eval_loss", "eval_a_loss"])
def test_what_auto_turns_out_to_be_is_checked(make_trainer, metric):
    arguments = shared_tokenizers() | {"eval_dataset": {"a": prompt_dataset(PROMPTS[:2])}}
    with pytest.raises(ConfigError, match=f"'{metric}'` would choose the worst.*objective='chunk_rkl'"):
        make_trainer(arguments=arguments, metric_for_best_model=metric, **BEST)


def test_the_loss_of_a_student_that_is_its_teacher_is_the_higher_one(
    tmp_path, load, student_path, same_tokenizer_teacher_path
):
    """Why it is refused."""

    def evaluate(student):
        args = tiny_args(tmp_path, objective="chunk_rkl")
        return tiny_trainer(load(student), same_tokenizer_teacher_path, args).evaluate(prompt_dataset())

    same, other = evaluate(same_tokenizer_teacher_path), evaluate(student_path)
    assert other[f"eval_{DIVERGENCE}"] > 0.1
    assert other["eval_loss"] < -0.1
    assert same[f"eval_{DIVERGENCE}"] == pytest.approx(0, abs=1e-5)
    assert same["eval_loss"] == pytest.approx(0, abs=1e-5)


def test_a_run_ends_with_the_checkpoint_of_the_least_divergence(make_trainer):
    options = keep_best("", steps=3) | {"metric_for_best_model": None, "greater_is_better": None}
    trainer = make_trainer(arguments=shared_tokenizers() | {"eval_dataset": prompt_dataset(PROMPTS[:2])}, **options)
    trainer.train()
    values = [entry[f"eval_{DIVERGENCE}"] for entry in trainer.state.log_history if f"eval_{DIVERGENCE}" in entry]
    assert len(values) == len(logged(trainer)) == 3
    assert trainer.state.best_metric == min(values)
