"""What datasets may come in: all at once or as a stream, one or several by name."""

import pytest
import torch
from datasets import DatasetDict, IterableDataset, IterableDatasetDict
from transformers import TrainerCallback

from tests.training.runs import logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.errors import DataError


def stream(prompts: list[str] = PROMPTS) -> IterableDataset:
    return prompt_dataset(prompts).to_iterable_dataset()


def containers() -> dict[str, object]:
    """The seven forms of evaluation data that TRL's trainers take."""
    return {
        "Dataset": prompt_dataset(),
        "IterableDataset": stream(),
        "DatasetDict": DatasetDict({"easy": prompt_dataset(), "hard": prompt_dataset()}),
        "IterableDatasetDict": IterableDatasetDict({"easy": stream(), "hard": stream()}),
        "dict of Dataset": {"easy": prompt_dataset(), "hard": prompt_dataset()},
        "dict of IterableDataset": {"easy": stream(), "hard": stream()},
        "None": None,
    }


@pytest.mark.parametrize("kind", list(containers()))
def test_evaluation_data_is_taken_and_stored_as_it_is(make_trainer, kind):
    given = containers()[kind]
    trainer = make_trainer(arguments=shared_tokenizers() | {"eval_dataset": given}, max_new_tokens=2)
    assert trainer.eval_dataset is given
    if given is None:
        return
    metrics = trainer.evaluate()
    names = ["eval_easy", "eval_hard"] if isinstance(given, dict) else ["eval"]
    assert {name for name in metrics if name.endswith("_loss")} == {f"{name}_loss" for name in names}


def test_a_stream_trains_as_the_same_rows_do(make_trainer):
    """Whose end is not known: `max_steps` says how far it is read, twice through if need be."""
    options = {"max_steps": 5, "train_sampling_strategy": "sequential", "per_device_train_batch_size": 2}
    logs, weights = [], []
    for dataset in (prompt_dataset(PROMPTS[:6]), stream(PROMPTS[:6])):
        trainer = make_trainer(arguments=shared_tokenizers() | {"train_dataset": dataset}, **options)
        trainer.train()
        assert trainer.state.global_step == 5
        logs.append([entry["loss"] for entry in logged(trainer)])
        weights.append([parameter.detach() for parameter in trainer.model.parameters()])
    assert logs[0] == logs[1]
    assert all(map(torch.equal, *weights))


def test_what_is_left_of_a_stream_is_in_no_step(make_trainer):
    """Transformers would accumulate it with the first batches of the next pass, and so count it twice."""
    options = {"max_steps": 4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    losses = []
    for dataset in (prompt_dataset(PROMPTS[:6]), stream(PROMPTS[:7])):
        trainer = make_trainer(
            arguments=shared_tokenizers() | {"train_dataset": dataset}, train_sampling_strategy="sequential", **options
        )
        trainer.train()
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_a_stream_without_a_whole_step_is_refused(make_trainer):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = make_trainer(arguments=shared_tokenizers() | {"train_dataset": stream(PROMPTS[:3])}, **options)
    with pytest.raises(DataError, match="ends after 2 batches, but one optimizer step takes 4"):
        trainer.train()


class StopAfterFourSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_a_resumed_run_finds_its_place_in_a_stream(make_trainer, tmp_path):
    """In its second pass: the first has three steps."""

    def train(callbacks=(), resume=None, **changes):
        dataset = stream(PROMPTS[:6]).shuffle(seed=1, buffer_size=6)
        trainer = make_trainer(
            arguments=shared_tokenizers() | {"train_dataset": dataset, "callbacks": list(callbacks)},
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            max_steps=8,
            save_steps=4,
            **changes,
        )
        trainer.train(resume_from_checkpoint=resume)
        losses = {entry["step"]: entry["loss"] for entry in logged(trainer)}
        return losses, [parameter.detach() for parameter in trainer.model.parameters()]

    losses, weights = train()
    train([StopAfterFourSteps()], save_strategy="steps")
    resumed_losses, resumed_weights = train(resume=str(tmp_path / "checkpoint-4"))
    assert {step: resumed_losses[step] for step in losses} == losses
    assert len(losses) == 8
    assert all(map(torch.equal, resumed_weights, weights))


def test_a_stream_that_is_generated_is_read_as_it_is_needed(make_trainer):
    read = []

    def rows():
        for number, prompt in enumerate(PROMPTS * 100):
            read.append(number)
            yield {"prompt": prompt}

    dataset = IterableDataset.from_generator(rows)
    trainer = make_trainer(arguments=shared_tokenizers() | {"train_dataset": dataset}, max_steps=3)
    trainer.train()
    assert max(read) < 20
    assert isinstance(trainer.train_dataset, IterableDataset)
