"""The loss of an optimizer step and its gradients against the slow reference."""

import pytest
import torch

from tests.training.fixed_rollouts import (
    FixedTrainer,
    lora,
    loss_and_gradients,
    raw,
    rollouts,
    stop,
    text,
    whole_step,
)
from tests.training.reference import Reference
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer


CREDITS = ["proportional", "additive", "uniform", "chunk"]


@pytest.fixture(scope="module")
def build(tmp_path_factory, padded_student_path):
    """A trainer of fixed rollouts."""

    def build_trainer(teacher_path, *, arguments=None, **changes):
        folder = tmp_path_factory.mktemp("numerics")
        args = tiny_args(folder, **changes)
        trainer = tiny_trainer(padded_student_path, teacher_path, args, trainer_class=FixedTrainer, **arguments or {})
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


@pytest.fixture(scope="module")
def byteless(build, byteless_teacher_path):
    """Its teacher cannot spell everything, so that there is something to drop and to charge for every reason."""
    return build(byteless_teacher_path)


@pytest.fixture(scope="module")
def sentencepiece(build, teacher_path):
    return build(teacher_path)


@pytest.fixture(scope="module")
def same_tokenizer(build, same_tokenizer_teacher_path):
    return build(same_tokenizer_teacher_path, objective="chunk_rkl")


def assert_as_reference(trainer, batch_size=3):
    actual, gradients = loss_and_gradients(trainer, PROMPTS, batch_size)
    reference = Reference(trainer)
    # Divergences of coins are smaller than log-ratios, and so are their gradients.
    loss, largest = (reference.chunk_jsd, 3e-5) if trainer.objective.name == "chunk_jsd" else (reference.loss, 1e-3)
    expected = loss(trainer.rollouts)
    expected.backward()
    torch.testing.assert_close(actual, expected.detach().float(), atol=largest / 100, rtol=1e-5)
    expected_gradients = reference.gradients()
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > largest, name
        torch.testing.assert_close(gradient, expected_gradients[name].float(), atol=largest / 100, rtol=1e-5)


@pytest.mark.parametrize("segmentation", ["path", "text"])
@pytest.mark.parametrize("credit", CREDITS)
def test_loss_and_gradients_equal_the_reference(byteless, monkeypatch, credit, segmentation):
    monkeypatch.setattr(byteless.args, "credit", credit)
    monkeypatch.setattr(byteless.args, "segmentation", segmentation)
    assert_as_reference(byteless)


@pytest.mark.parametrize("batch_size", [1, 3, 100], ids=["micro-batches of one", "ragged", "one micro-batch"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.1, 8.0), (0.5, 20.0), (0.9, 5.0)])
def test_chunk_jsd(build, byteless_teacher_path, beta, temperature, batch_size):
    options = {"objective": "chunk_jsd", "beta": beta, "chunk_temperature": temperature}
    assert_as_reference(build(byteless_teacher_path, **options), batch_size)


@pytest.mark.parametrize(("name", "value"), [("one_to_one_only", True), ("max_chunk_tokens", 2)])
@pytest.mark.parametrize("segmentation", ["path", "text"])
def test_chunks_left_out_by_their_size(build, byteless_teacher_path, segmentation, name, value):
    assert_as_reference(build(byteless_teacher_path, segmentation=segmentation, **{name: value}))


@pytest.mark.parametrize("segmentation", ["path", "text"])
def test_white_space_left_out(build, byteless_teacher_path, segmentation):
    trainer = build(byteless_teacher_path, segmentation=segmentation, drop_whitespace=True)
    trainer.rollouts |= {PROMPTS[0]: text("x = 1\n\n\t\ty = 2  # done\n") + raw(b"  \n") + stop()}
    assert_as_reference(trainer)
    micro_batches, _ = whole_step(trainer, PROMPTS, batch_size=3)
    assert sum(inputs["micro_batch"].dropped["whitespace"] for inputs in micro_batches) >= 3


@pytest.mark.parametrize("baseline", ["none", "mean"])
@pytest.mark.parametrize("guard", [0.0, 2.5])
def test_guard_of_the_canonical_tokenization(byteless, monkeypatch, guard, baseline):
    monkeypatch.setattr(byteless.args, "canonical_guard", guard)
    monkeypatch.setattr(byteless.args, "advantage_baseline", baseline)
    assert_as_reference(byteless)
    micro_batches, _ = whole_step(byteless, PROMPTS, batch_size=100)
    (batch,) = [inputs["micro_batch"] for inputs in micro_batches]
    assert 3 <= batch.leaving.sum() < (batch.chunks >= 0).sum()


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("segmentation", ["path", "text"])
def test_clipping_comes_after_the_text_correction(byteless, monkeypatch, segmentation, clip):
    monkeypatch.setattr(byteless.args, "advantage_clip", clip)
    monkeypatch.setattr(byteless.args, "segmentation", segmentation)
    assert_as_reference(byteless)


@pytest.mark.parametrize("baseline", ["none", "mean"])
@pytest.mark.parametrize("charge", [0.0, -0.5])
def test_fixed_charges(byteless, monkeypatch, charge, baseline):
    monkeypatch.setattr(byteless.args, "dropped_advantage", charge)
    monkeypatch.setattr(byteless.args, "advantage_baseline", baseline)
    assert_as_reference(byteless)


@pytest.mark.parametrize("batch_size", [1, 3, 100], ids=["micro-batches of one", "ragged", "one micro-batch"])
def test_the_mean_baseline_is_that_of_the_optimizer_step(byteless, monkeypatch, batch_size):
    monkeypatch.setattr(byteless.args, "advantage_baseline", "mean")
    assert_as_reference(byteless, batch_size)


def test_reasons_that_the_rollouts_cover(byteless):
    """If this fails the tests above have lost some of their cases."""
    dropped = {reason for ids in rollouts().values() for reason in byteless.aligner.align(ids).dropped}
    assert dropped >= {"invalid_utf8", "unknown_id", "cut_character"}
    assert any(not ids for ids in rollouts().values())


@pytest.mark.parametrize("teacher_logp", [-0.01, -50.0], ids=["teacher likes all", "teacher likes nothing"])
def test_mean_charge_is_never_a_reward(byteless, monkeypatch, teacher_logp):
    """It is the mean advantage where that is negative; where it is not, the unscorable tokens earn nothing."""

    def token_logps(prompts, completions):
        return torch.full((sum(map(len, completions)),), teacher_logp)

    monkeypatch.setattr(byteless.teacher, "token_logps", token_logps)
    micro_batches, _ = whole_step(byteless, PROMPTS, batch_size=3)
    (charge,) = {float(inputs["micro_batch"].means.charge) for inputs in micro_batches}
    assert (charge < -1) if teacher_logp == -50.0 else charge == 0


@pytest.mark.parametrize("segmentation", ["path", "text"])
def test_teacher_with_byte_tokens_scores_invalid_bytes(sentencepiece, monkeypatch, segmentation):
    monkeypatch.setattr(sentencepiece.args, "segmentation", segmentation)
    assert_as_reference(sentencepiece)


@pytest.mark.parametrize("segmentation", ["path", "text"])
def test_adapter(build, teacher_path, segmentation):
    trainer = build(teacher_path, arguments={"peft_config": lora()}, segmentation=segmentation)
    assert_as_reference(trainer)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name for name in trained)


def test_temperature_divides_the_logits_of_both_models(build, teacher_path):
    assert_as_reference(build(teacher_path, temperature=0.7, segmentation="text"))


@pytest.mark.parametrize("credit", CREDITS)
def test_same_tokenizer_is_plain_on_policy_distillation(same_tokenizer, monkeypatch, credit):
    """The advantage of a token is `log p_T - log p_S`, and all are trained on, also the last of an unfinished one."""
    monkeypatch.setattr(same_tokenizer.args, "credit", credit)
    trainer = same_tokenizer
    actual, gradients = loss_and_gradients(trainer, PROMPTS, batch_size=3)

    reference = Reference(trainer)
    student, teacher = reference.plain_logps(trainer.rollouts)
    known = teacher.isfinite()
    assert known.sum() == len(known) - 1, "only the unknown id has no teacher log-prob"
    advantages = (teacher - student.detach())[known].clamp(-10, 10)
    charge = advantages.mean().clamp(max=0)
    loss = -((advantages * student[known]).sum() + charge * student[~known].sum()) / len(student)
    loss.backward()
    torch.testing.assert_close(actual, loss.detach().float(), atol=1e-5, rtol=1e-5)
    for name, gradient in reference.gradients().items():
        torch.testing.assert_close(gradients[name], gradient.float(), atol=1e-5, rtol=1e-5)
