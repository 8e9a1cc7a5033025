"""A run that was interrupted and resumed ends with the weights of one that was not, bit for bit."""

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests.training.tiny_models import PROMPTS, prompt_dataset


class StopAfterTwoSteps(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


@pytest.fixture
def run(make_trainer):
    """Train four steps, or what is left of them; returns the trained parameters and the logs by step."""

    def train(*, callbacks=(), resume=None, **changes):
        # Adapters are drawn from the global state.
        torch.manual_seed(3)
        trainer = make_trainer(
            arguments={
                "peft_config": LoraConfig(r=2, lora_dropout=changes.pop("lora_dropout", 0.0)),
                "callbacks": list(callbacks),
                "train_dataset": prompt_dataset(PROMPTS),
            },
            max_steps=4,
            save_steps=2,
            max_new_tokens=4,
            activation_checkpointing=True,
            **changes,
        )
        trainer.train(resume_from_checkpoint=resume)
        assert trainer.state.global_step == (2 if callbacks else 4)
        weights = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
        return weights, {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}

    return train


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, id="in an epoch"),
        pytest.param({"per_device_train_batch_size": 4, "segmentation": "text"}, id="between epochs"),
        pytest.param(
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "credit": "chunk"},
            id="last window short",
        ),
        pytest.param(
            {"per_device_train_batch_size": 1, "disable_dropout": False, "lora_dropout": 0.3}, id="with dropout"
        ),
    ],
)
def test_resumed_run_ends_where_the_uninterrupted_one_does(run, tmp_path, changes):
    straight, straight_logs = run(**changes)
    run(callbacks=[StopAfterTwoSteps()], save_strategy="steps", **changes)
    resumed, resumed_logs = run(resume=str(tmp_path / "checkpoint-2"), **changes)
    assert straight.keys() == resumed.keys()
    assert any(weight.count_nonzero() for name, weight in straight.items() if "lora_B" in name)
    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name
    for step in (3, 4):
        for name in ("loss", "grad_norm", "xtok/coverage", "xtok/reverse_kl_per_byte"):
            assert resumed_logs[step][name] == straight_logs[step][name], (step, name)
