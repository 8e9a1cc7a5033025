"""`compute_metrics`: a user's own figures for the completions that an evaluation sampled."""

import json

import numpy as np
import pytest
from datasets import Dataset
from transformers import EvalPrediction

from tests.training.runs import keep_best, shared_tokenizers, write
from tests.training.tiny_models import PROMPTS, prompt_dataset


@pytest.fixture
def build(make_trainer):
    def build_trainer(compute_metrics, eval_dataset, *, arguments=None, **changes):
        given = {"compute_metrics": compute_metrics, "eval_dataset": eval_dataset}
        return make_trainer(arguments=shared_tokenizers() | given | (arguments or {}), **changes)

    return build_trainer


@pytest.fixture
def seen(build):
    """What a `compute_metrics` is given for a dataset, when the student writes " 4."."""

    def evaluate(dataset, **changes) -> EvalPrediction:
        given = []
        trainer = build(lambda prediction: given.append(prediction) or {}, dataset, **changes)
        write(trainer, " 4.")
        trainer.evaluate()
        (prediction,) = given
        return prediction

    return evaluate


def test_it_gets_completions_references_and_prompts_as_texts(seen):
    answers = [f" {number}. \u4f60\u597d" for number in range(len(PROMPTS))]
    prediction = seen(prompt_dataset().add_column("completion", answers), per_device_eval_batch_size=3)
    assert prediction.predictions == [" 4."] * len(PROMPTS)
    assert prediction.label_ids == answers
    assert prediction.inputs == PROMPTS


def test_it_unpacks_into_completions_and_references(seen):
    predictions, references = seen(prompt_dataset(PROMPTS[:2]).add_column("completion", ["a", "b"]))
    assert (predictions, references) == ([" 4.", " 4."], ["a", "b"])


def test_without_references_there_are_none(seen):
    assert seen(prompt_dataset()).label_ids is None


def test_rows_without_a_reference_have_none(seen):
    tool_call = [{"role": "assistant", "content": None}, {"role": "tool", "content": "5"}]
    rows = [
        {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]},
        {"messages": [{"role": "user", "content": "2 + 3?"}]},
    ]
    assert seen(Dataset.from_list(rows)).label_ids == ["4.", None]
    both = [{"prompt": row["messages"][:1], "completion": c} for row, c in zip(rows, ([], tool_call), strict=True)]
    assert seen(Dataset.from_list(both)).label_ids is None


def test_references_need_not_be_trainable(seen):
    """They are no completions to train on: as long as they like, in whatever the student cannot spell."""
    long = "x" * 5000
    assert seen(prompt_dataset(["Hi"]).add_column("completion", [long])).label_ids == [long]


def test_what_it_returns_is_reported_as_metrics_of_the_evaluation(build, tmp_path):
    def compute_metrics(prediction):
        right = [text.strip() == "4." for text in prediction.predictions]
        return {"accuracy": np.mean(right), "eval_count": np.int64(len(right)), "loss": -1.0}

    trainer = build(compute_metrics, {"a": prompt_dataset(), "b": prompt_dataset(PROMPTS[:3])})
    write(trainer, " 4.")
    metrics = trainer.evaluate()
    assert (metrics["eval_a_accuracy"], metrics["eval_b_accuracy"]) == (1.0, 1.0)
    assert metrics["eval_b_eval_count"] == 3
    assert metrics["eval_a_loss"] != -1.0
    assert trainer.evaluate(prompt_dataset())["eval_count"] == len(PROMPTS)
    json.dumps(trainer.state.log_history)


def test_the_best_checkpoint_can_be_chosen_by_it(build, tmp_path):
    values = iter([0.25, 0.75, 0.5])
    trainer = build(
        lambda _: {"accuracy": next(values)},
        prompt_dataset(PROMPTS[:2]),
        **keep_best("eval_accuracy", steps=3),
    )
    trainer.train()
    assert trainer.state.best_metric == 0.75
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


def test_training_is_the_same_with_it(build):
    def losses(compute_metrics):
        trainer = build(compute_metrics, prompt_dataset(PROMPTS[:2]), max_steps=2, eval_strategy="steps", eval_steps=1)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert losses(lambda _: {"accuracy": 1.0}) == losses(None)


def test_references_are_kept_beside_the_completions(build, tmp_path):
    import pandas as pd

    dataset = prompt_dataset(PROMPTS[:2]).add_column("completion", ["a", "b"])
    trainer = build(lambda _: {}, dataset, log_completions=True)
    trainer.evaluate()
    assert pd.read_parquet(tmp_path / "completions/eval_completions_00000.parquet")["reference"].tolist() == ["a", "b"]
