"""Objectives that compare next-token distributions: against the slow reference, in micro-batches, and refusals."""

from dataclasses import replace

import pytest
import torch

from tests.training.fixed_rollouts import FixedTrainer, lora, loss_and_gradients, rollouts, scored_step
from tests.training.reference import Reference
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from tests.training.vocab_reference import VocabReference
from trl_xtok.errors import ConfigError
from trl_xtok.training.objective import student_scores, token_losses
from trl_xtok.training.trl_compat import GKDTrainer


BETAS = [0.0, 0.4, 1.0]


@pytest.fixture
def build(tmp_path, padded_student_path, teacher_path):
    def build_trainer(objective, teacher=teacher_path, peft_config=None, **changes):
        trainer = tiny_trainer(
            padded_student_path,
            teacher,
            tiny_args(tmp_path, objective=objective, **changes),
            trainer_class=FixedTrainer,
            peft_config=peft_config,
        )
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


def assert_as_reference(trainer, batch_size=3):
    actual, gradients = loss_and_gradients(trainer, PROMPTS, batch_size)
    reference = Reference(trainer)
    expected = VocabReference(reference, trainer.objective.name).loss(trainer.rollouts)
    expected.backward()
    torch.testing.assert_close(actual, expected.detach().float(), atol=1e-5, rtol=1e-5)
    expected_gradients = reference.gradients()
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        assert largest > 1e-5, name
        torch.testing.assert_close(gradient, expected_gradients[name].float(), atol=1e-5 * largest, rtol=1e-4)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("objective", ["shared_vocab_jsd", "hybrid", "prefix_jsd"])
def test_loss_and_gradients_equal_the_reference(build, objective, beta):
    assert_as_reference(build(objective, beta=beta))


@pytest.mark.parametrize("batch_size", [1, 100], ids=["micro-batches of one", "one micro-batch"])
@pytest.mark.parametrize("objective", ["hybrid", "prefix_jsd"])
def test_what_is_credited_has_its_own_weight_clip_baseline_and_charge(
    build, byteless_teacher_path, objective, batch_size
):
    options = {"credit": "additive", "chunk_weight": 0.3, "advantage_clip": 2.0, "advantage_baseline": "mean"}
    assert_as_reference(build(objective, byteless_teacher_path, temperature=0.8, **options), batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 100], ids=["micro-batches of one", "ragged", "one micro-batch"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_expected_advantage_as_baseline(build, byteless_teacher_path, clip, batch_size):
    options = {"advantage_clip": clip, "advantage_baseline": "position", "temperature": 0.8}
    trainer = build("chunk_rkl", byteless_teacher_path, **options)
    assert_as_reference(trainer, batch_size)
    plain = build("chunk_rkl", byteless_teacher_path, **options | {"advantage_baseline": "none"})
    losses = [loss_and_gradients(each, PROMPTS, batch_size)[0] for each in (trainer, plain)]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("changes", [{"one_to_one_only": True}, {"max_chunk_tokens": 1}])
@pytest.mark.parametrize("objective", ["hybrid", "prefix_jsd"])
def test_long_chunks_may_be_left_out(build, byteless_teacher_path, objective, changes):
    assert_as_reference(build(objective, byteless_teacher_path, **changes))


@pytest.mark.parametrize("objective", ["shared_vocab_jsd", "hybrid", "prefix_jsd"])
def test_adapter(build, objective):
    assert_as_reference(build(objective, peft_config=lora()))


def test_chunks_that_begin_with_different_events_are_credited_in_full(build):
    """If this fails the tests above have lost a case: both kinds of longer chunks stand in the rollouts."""
    trainer = build("prefix_jsd")
    (starts,) = [batch.starts for batch in scored_step(trainer, PROMPTS, len(PROMPTS))]
    longer = starts.events[~starts.one_to_one]
    assert (longer >= 0).any()
    assert (longer < 0).any()


@pytest.mark.parametrize("objective", ["hybrid", "prefix_jsd"])
def test_a_chunk_of_one_token_without_a_common_event_is_credited(build, objective):
    """Whatever its tokens are: two vocabularies can spell one text with tokens that are nobody's counterpart."""
    trainer = build(objective)
    (batch,) = scored_step(trainer, PROMPTS, len(PROMPTS))
    starts = batch.starts.tokens[batch.starts.one_to_one]
    scores = student_scores(trainer.model, batch, trainer.objective, trainer.args)
    _, _, usual = token_losses(scores, batch, trainer.objective, trainer.args)
    assert not usual.scored[starts[batch.starts.events[batch.starts.one_to_one] >= 0]].any()
    batch.starts = replace(batch.starts, events=torch.full_like(batch.starts.events, -1))
    _, _, credited = token_losses(scores, batch, trainer.objective, trainer.args)
    assert credited.scored[starts].all()
    log_ratios = batch.teacher_logps[batch.chunks[starts]] - scores.logps.detach()[starts]
    torch.testing.assert_close(credited.advantages[starts], log_ratios.clamp(-10, 10))


@pytest.mark.parametrize("beta", BETAS)
def test_equal_vocabularies_give_the_loss_of_gkd(build, same_tokenizer_teacher_path, beta):
    """`auto` finds out. The student's embedding has more rows than the teacher's; those that both have count."""
    trainer = build("auto", same_tokenizer_teacher_path, beta=beta)
    assert trainer.objective.name == "exact_jsd"
    assert_as_reference(trainer)
    reference, total, count = Reference(trainer), torch.zeros(()), 0
    rows = reference.teacher.get_output_embeddings().weight.shape[0]
    trainer.rollouts = {prompt: ids for prompt, ids in trainer.rollouts.items() if ids and max(ids) < rows}
    for prompt, ids in trainer.rollouts.items():
        logits = [
            model(torch.tensor([[*prompt_ids, *ids]])).logits[:, len(prompt_ids) - 1 : -1, :rows]
            for model, prompt_ids in zip(
                (reference.student, reference.teacher), reference.tokenize(prompt), strict=True
            )
        ]
        total = total + GKDTrainer.generalized_jsd_loss(*logits, beta=beta, reduction="sum")
        count += len(ids)
    actual, gradients = loss_and_gradients(trainer, list(trainer.rollouts), 3)
    (total / count).backward()
    torch.testing.assert_close(actual, (total / count).detach().float(), atol=1e-5, rtol=1e-5)
    for name, gradient in reference.gradients().items():
        torch.testing.assert_close(gradients[name], gradient.float(), atol=1e-5, rtol=1e-4)


def test_exact_comparison_needs_one_vocabulary(build):
    with pytest.raises(ConfigError, match="do not spell the same bytes id by id"):
        build("exact_jsd")


def test_what_auto_chooses_must_read_what_was_set(build, same_tokenizer_teacher_path):
    with pytest.raises(ConfigError, match=r"credit='additive'.*exact_jsd'`, which `auto` chooses"):
        build("auto", same_tokenizer_teacher_path, credit="additive")
    with pytest.raises(ConfigError, match=r"beta=0.9.*chunk_rkl'`, which `auto` chooses"):
        build("auto", beta=0.9)


@pytest.mark.parametrize("objective", ["shared_vocab_jsd", "hybrid", "prefix_jsd"])
def test_a_short_run_logs_the_divergence(build, objective):
    trainer = build(objective, max_steps=2)
    trainer.rollouts = None
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    assert all(log["xtok/vocab_jsd"] > 0 for log in logs)
    assert trainer.evaluate(prompt_dataset())["eval_xtok/vocab_jsd"] > 0
