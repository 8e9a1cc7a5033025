"""The loss of an optimizer step and its gradients against the slow reference."""

import pytest
import torch
from peft import LoraConfig

from tests.training.fixed_rollouts import FixedTrainer, rollouts, whole_step
from tests.training.reference import Reference
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer


CREDITS = ["proportional", "additive", "uniform", "chunk"]

# Random adapters: with the usual zeros in one of the two matrices half of the gradients would be zero.
LORA = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj", "down_proj"])


def build(student_path, teacher_path, folder, **changes):
    arguments = {"peft_config": changes.pop("peft_config")} if "peft_config" in changes else {}
    args = tiny_args(folder, per_device_train_batch_size=3, **changes)
    trainer = tiny_trainer(student_path, teacher_path, args, trainer_class=FixedTrainer, **arguments)
    trainer.rollouts = rollouts()
    return trainer


@pytest.fixture(scope="module")
def byteless(padded_student_path, byteless_teacher_path, tmp_path_factory):
    """A teacher that cannot spell everything, so that all reasons to drop and to charge occur."""
    return build(padded_student_path, byteless_teacher_path, tmp_path_factory.mktemp("byteless"))


@pytest.fixture(scope="module")
def sentencepiece(padded_student_path, teacher_path, tmp_path_factory):
    return build(padded_student_path, teacher_path, tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def lora(padded_student_path, teacher_path, tmp_path_factory):
    return build(padded_student_path, teacher_path, tmp_path_factory.mktemp("lora"), peft_config=LORA)


def loss_and_gradients(trainer, prompts=PROMPTS, batch_size=3):
    trainer.model.zero_grad()
    total = torch.zeros(())
    for step in whole_step(trainer, prompts, batch_size):
        loss = trainer.compute_loss(trainer.model, step["inputs"], num_items_in_batch=step["num_items_in_batch"])
        loss.backward()
        total += loss.detach()
    return total, {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def assert_as_reference(trainer):
    actual, gradients = loss_and_gradients(trainer)
    reference = Reference(trainer)
    expected = reference.loss(trainer.rollouts)
    expected.backward()
    torch.testing.assert_close(actual, expected.detach().float(), atol=1e-5, rtol=1e-5)
    expected_gradients = reference.gradients()
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected_gradients[name].float(), atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("segmentation", ["path", "text"])
@pytest.mark.parametrize("credit", CREDITS)
def test_loss_and_gradients_equal_the_reference(byteless, monkeypatch, credit, segmentation):
    monkeypatch.setattr(byteless.args, "credit", credit)
    monkeypatch.setattr(byteless.args, "segmentation", segmentation)
    assert_as_reference(byteless)
