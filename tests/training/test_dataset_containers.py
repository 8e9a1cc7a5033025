"""What datasets may come in: all at once or as a stream, one or several by name."""

import pytest
import torch
from datasets import DatasetDict, IterableDataset, IterableDatasetDict

from tests.training.runs import logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset


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
