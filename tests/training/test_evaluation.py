"""Datasets that come with a call of `evaluate` or `predict`, and what it hands back."""

import pandas as pd
import pytest
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from tests.training.runs import logged, shared_tokenizers, write
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.errors import ConfigError, DataError
from trl_xtok.training.guards import CoverageGuard


TURNS = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Twice that?"},
    {"role": "assistant", "content": "8"},
]
CONVERSATION = Dataset.from_list([{"messages": TURNS}])


@pytest.fixture
def build(make_trainer):
    def build_trainer(*, arguments=None, **changes):
        return make_trainer(arguments=shared_tokenizers() | (arguments or {}), **{"max_new_tokens": 3} | changes)

    return build_trainer


@pytest.fixture
def plain(build):
    """A trainer that reads plain text for training."""
    rows = Dataset.from_dict({"text": ["Paris is the capital of France."] * 2})
    return build(arguments={"train_dataset": rows}, lmbda=0.0, objective="chunk_jsd")


@pytest.mark.parametrize("method", ["evaluate", "predict"])
class TestDatasetsAtRunTime:
    @pytest.mark.parametrize("kind", [Dataset.from_dict, lambda rows: Dataset.from_dict(rows).to_iterable_dataset()])
    def test_text_without_a_prompt_is_refused(self, plain, method, kind):
        with pytest.raises(DataError, match="has the columns text, and none holds a prompt"):
            getattr(plain, method)(kind({"text": ["Berlin is the capital of Germany."]}))

    def test_a_named_dataset_is_named(self, build, method):
        with pytest.raises(DataError, match=r"Row 1 of `eval_dataset\['b'\]`: The prompt is empty"):
            getattr(build(), method)({"a": prompt_dataset(), "b": prompt_dataset(["Hi", ""])})

    def test_what_is_no_dataset_is_refused(self, build, method):
        with pytest.raises(DataError, match="`eval_dataset` is a list"):
            getattr(build(), method)([{"prompt": "Hi"}])

    def test_an_empty_dataset_is_refused(self, build, method):
        with pytest.raises(DataError, match="`eval_dataset` is empty"):
            getattr(build(), method)(prompt_dataset().select([]))

    def test_a_prompt_that_is_too_long_is_found_before_anything_is_sampled(self, build, method):
        trainer = build()
        trainer._roll_out = None
        with pytest.raises(DataError, match="Row 1 of `eval_dataset`: A prompt has"):
            getattr(trainer, method)(prompt_dataset(["Hi", "word " * 200]))


def test_predictions_are_texts(build, tmp_path):
    trainer = build(arguments={"compute_metrics": lambda prediction: {"number": len(prediction.predictions)}})
    write(trainer, " 4.")
    output = trainer.predict(prompt_dataset(PROMPTS[:3]).add_column("completion", ["a", "b", "c"]))
    assert output.predictions == [" 4."] * 3
    assert output.label_ids == ["a", "b", "c"]
    assert output.metrics["test_number"] == 3
    assert "test_xtok/coverage" in output.metrics


def test_predictions_are_those_that_an_evaluation_makes(build, tmp_path):
    trainer = build(log_completions=True, per_device_eval_batch_size=3)
    trainer.evaluate(prompt_dataset())
    sampled = pd.read_parquet(tmp_path / "completions/eval_completions_00000.parquet")["completion"].tolist()
    trainer.args.log_completions = False
    output = trainer.predict(prompt_dataset())
    assert output.predictions == sampled
    assert output.label_ids is None


def test_every_turn_is_answered(build):
    trainer = build(arguments={"train_dataset": CONVERSATION}, assistant_turns="all")
    assert len(trainer.predict(CONVERSATION).predictions) == 2


def test_workers_that_persist_read_the_dataset_that_is_given(build):
    trainer = build(
        arguments={"eval_dataset": prompt_dataset()}, dataloader_num_workers=1, dataloader_persistent_workers=True
    )
    sizes = [trainer.evaluate(given)["eval_num_tokens"] for given in (None, prompt_dataset(PROMPTS[:2]), None)]
    assert sizes[0] == sizes[2] > sizes[1]


def test_a_stream_is_read_again(build):
    dataset = IterableDataset.from_generator(lambda: ({"prompt": prompt} for prompt in PROMPTS[:3]))
    trainer = build()
    assert len(trainer.predict(dataset).predictions) == len(trainer.predict(dataset).predictions) == 3


# On the completions of the dataset.


WRITTEN = prompt_dataset().add_column("completion", [f" {prompt} again, 2024 times." for prompt in PROMPTS])


@pytest.mark.parametrize(
    ("objective", "weight"),
    [("chunk_jsd", 0.0), ("prefix_jsd", 0.0), ("shared_vocab_jsd", 0.3), ("chunk_rkl", 1.0)],
)
def test_the_loss_on_the_dataset_is_that_of_a_step_on_it(build, objective, weight):
    """And `chunk_rkl`, which has none, tells the cross-entropy."""
    options = {"objective": objective, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
    step = build(
        arguments={"train_dataset": WRITTEN},
        lmbda=0.0,
        crossentropy_weight=weight,
        learning_rate=0.0,
        eval_on_dataset=True,
        **options,
    )
    step.train()
    (entry,) = logged(step)
    evaluated = step.evaluate(WRITTEN)
    assert evaluated["eval_loss"] == pytest.approx(entry["loss"], rel=1e-5)
    assert evaluated["eval_xtok/cross_entropy"] == pytest.approx(entry["off_policy/xtok/cross_entropy"], rel=1e-5)
    assert "eval_xtok/reverse_kl_per_byte" not in evaluated
    if objective == "chunk_rkl":
        # The weight is for training, and without one the cross-entropy counts whole.
        alone = build(eval_on_dataset=True, **options).evaluate(WRITTEN)
        assert alone["eval_loss"] == pytest.approx(evaluated["eval_xtok/cross_entropy"], rel=1e-5)


def test_a_run_on_prompts_may_be_evaluated_on_a_dataset(build):
    trainer = build(arguments={"eval_dataset": WRITTEN}, eval_on_dataset=True, max_steps=2, eval_strategy="steps")
    trainer.train()
    assert trainer.state.log_history[0]["completions/max_length"] <= 3
    trainer._roll_out = None
    assert trainer.evaluate()["eval_completions/min_length"] > 3


def test_plain_text_can_be_evaluated_on(build):
    rows = Dataset.from_dict({"text": ["Paris is the capital of France.", "Berlin is the capital of Germany."]})
    trainer = build(arguments={"eval_dataset": rows}, eval_on_dataset=True)
    assert trainer.evaluate()["eval_xtok/coverage"] > 0


@pytest.mark.parametrize("kind", ["at the start", "at run time"])
def test_rows_without_a_completion_are_refused(build, kind):
    dataset = WRITTEN.select([0, 1]).map(lambda _, number: {"completion": ["a", None][number]}, with_indices=True)
    with pytest.raises(DataError, match=r"Row 1 of `eval_dataset`: The dataset's completions are asked for"):
        if kind == "at the start":
            build(arguments={"eval_dataset": dataset}, eval_on_dataset=True)
        else:
            build(eval_on_dataset=True).evaluate(dataset)


def test_what_reads_the_students_completions_is_refused(build):
    with pytest.raises(ConfigError, match="`compute_metrics` gets what the student writes"):
        build(arguments={"compute_metrics": dict}, eval_on_dataset=True)
    with pytest.raises(ConfigError, match="`predict` returns what the student writes"):
        build(eval_on_dataset=True).predict(WRITTEN)


class EvaluateInMidStep(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        self.trainer.evaluate()


def test_an_evaluation_between_micro_batches_leaves_the_coverage_of_the_step_alone(make_trainer, monkeypatch):
    seen, sizes = [], {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1}
    monkeypatch.setattr(CoverageGuard, "check", lambda guard, coverage: seen.append(coverage))
    for callbacks in ([], [EvaluateInMidStep()]):
        trainer = make_trainer(
            arguments={"eval_dataset": prompt_dataset(PROMPTS[2:]), "callbacks": callbacks}, **sizes
        )
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train()
    assert len(seen) == 2
    assert seen[0] == seen[1] < 1
