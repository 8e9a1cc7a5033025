"""How the prompts of an optimizer step are divided into micro-batches changes neither its loss nor its gradients."""

import pytest
import torch

from tests.training.fixed_rollouts import (
    FixedTrainer,
    lora,
    loss_and_gradients,
    rollouts,
    train_one_step,
    without_times,
)
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer


# Batch size, accumulation steps.
SPLITS = [(4, 1), (2, 2), (1, 4)]

# A canonical completion and one that is not, one with charged tokens, one without tokens.
STEP = dict(list(rollouts().items())[i] for i in (0, 1, 3, 5))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, padded_student_path, byteless_teacher_path):
    args = tiny_args(tmp_path_factory.mktemp("normalization"))
    trainer = tiny_trainer(padded_student_path, byteless_teacher_path, args, trainer_class=FixedTrainer)
    trainer.rollouts = rollouts()
    return trainer


def assert_same(step, other):
    loss, gradients = step
    other_loss, other_gradients = other
    assert float(loss) == pytest.approx(float(other_loss), abs=1e-5, rel=1e-5)
    assert gradients.keys() == other_gradients.keys()
    assert len(gradients) > 0
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("segmentation", ["path", "text"])
@pytest.mark.parametrize("credit", ["proportional", "additive", "uniform", "chunk"])
def test_micro_batches_of_any_size_give_one_loss(trainer, monkeypatch, credit, segmentation):
    monkeypatch.setattr(trainer.args, "credit", credit)
    monkeypatch.setattr(trainer.args, "segmentation", segmentation)
    whole = loss_and_gradients(trainer, PROMPTS, batch_size=8)
    for batch_size in (4, 3, 1):
        assert_same(loss_and_gradients(trainer, PROMPTS, batch_size=batch_size), whole)


OFF_POLICY = {
    "chunk_rkl": 0.5,
    "chunk_jsd": 0.2,
    "exact_jsd": 0.2,
    "shared_vocab_jsd": 0.0,
    "hybrid": 0.0,
    "prefix_jsd": 0.2,
}


@pytest.fixture
def build(tmp_path, padded_student_path, byteless_teacher_path, same_tokenizer_teacher_path):
    def build_trainer(objective, **changes):
        teacher = same_tokenizer_teacher_path if objective == "exact_jsd" else byteless_teacher_path
        args = tiny_args(tmp_path, objective=objective, **changes)
        trainer = tiny_trainer(padded_student_path, teacher, args, trainer_class=FixedTrainer, train_dataset=written())
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


def written():
    return prompt_dataset().add_column("completion", [f" {prompt} again, 2024 times.\n" for prompt in PROMPTS])


@pytest.mark.parametrize("objective", [name for name in OFF_POLICY if name != "chunk_rkl"])
def test_micro_batches_of_any_size_give_one_loss_of_every_objective(build, objective):
    trainer = build(objective)
    whole = loss_and_gradients(trainer, PROMPTS, batch_size=8)
    assert whole[0] != 0
    for batch_size in (4, 1):
        assert_same(loss_and_gradients(trainer, PROMPTS, batch_size=batch_size), whole)


@pytest.mark.parametrize(("objective", "weight"), OFF_POLICY.items())
def test_micro_batches_of_any_size_give_one_loss_of_written_completions(build, objective, weight):
    trainer = build(objective, lmbda=0.0, crossentropy_weight=weight, max_new_tokens=40)
    whole = loss_and_gradients(trainer, written(), batch_size=8)
    assert whole[0] != 0
    for batch_size in (4, 1):
        assert_same(loss_and_gradients(trainer, written(), batch_size=batch_size), whole)


def test_loss_does_not_grow_with_the_number_of_micro_batches(trainer):
    """Twice the same prompts is the same mean."""
    once = loss_and_gradients(trainer, PROMPTS, batch_size=4)
    assert_same(loss_and_gradients(trainer, [*PROMPTS, *PROMPTS], batch_size=4), once)


def test_rollouts_that_are_not_trained_on_change_nothing(trainer, monkeypatch):
    """An empty completion, one that is all cut off, and one that holds unscorable tokens that are not charged."""
    monkeypatch.setattr(trainer.args, "dropped_advantage", 0.0)
    without = loss_and_gradients(trainer, PROMPTS[:2], batch_size=1)
    idle = {PROMPTS[2]: [], PROMPTS[3]: rollouts()[PROMPTS[7]][-2:], PROMPTS[4]: rollouts()[PROMPTS[4]][1:2]}
    monkeypatch.setattr(trainer, "rollouts", rollouts() | idle)
    assert_same(loss_and_gradients(trainer, PROMPTS[:5], batch_size=1), without)
    assert_same(loss_and_gradients(trainer, PROMPTS[:5], batch_size=5), without)


OFF_POLICY_STEP = {
    "objective": "prefix_jsd",
    "lmbda": 0.0,
    "crossentropy_weight": 0.3,
    "written": [" one, 2024 two", " three", " \u4f60\u597d and more of it", " four"],
}


@pytest.mark.parametrize(
    ("changes", "make_config"),
    [
        pytest.param({"credit": "chunk", "segmentation": "text"}, lambda: None, id="full"),
        pytest.param({"activation_checkpointing": True}, lora, id="adapter, checkpointing"),
        pytest.param(OFF_POLICY_STEP, lambda: None, id="off policy, cross-entropy"),
    ],
)
def test_accumulation_changes_nothing_of_a_real_step(
    padded_student_path, byteless_teacher_path, tmp_path, changes, make_config
):
    steps = [
        train_one_step(
            padded_student_path,
            byteless_teacher_path,
            str(tmp_path),
            STEP,
            peft_config=make_config(),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            **changes,
        )
        for batch_size, accumulation in SPLITS
    ]
    for step in steps[1:]:
        assert_same((step.logged["loss"], step.gradients), (steps[0].logged["loss"], steps[0].gradients))
        assert without_times(step.logged) == pytest.approx(without_times(steps[0].logged), abs=1e-5, rel=1e-5)
