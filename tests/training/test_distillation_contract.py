"""What a user of TRL's `DistillationTrainer` relies on, as far as no other test proves it for ours."""

import pytest
import torch

from tests.training.fixed_rollouts import whole_step
from tests.training.runs import changed, parameters_of, shared_tokenizers
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, student_path, teacher_path) -> CrossTokenizerGKDTrainer:
    args = tiny_args(tmp_path_factory.mktemp("distillation"), max_steps=2, num_train_epochs=2)
    return tiny_trainer(student_path, teacher_path, args, **shared_tokenizers())


@pytest.fixture(scope="module")
def window(trainer):
    return whole_step(trainer, PROMPTS, 4)


def test_a_batch_holds_prompts_and_completions_and_says_which_is_which(window):
    for inputs in window[0]:
        batch = inputs["micro_batch"]
        rows = [[*rollout.prompt_ids, *rollout.completion_ids] for rollout in batch.rollouts]
        for ids, mask, row in zip(inputs["input_ids"], inputs["attention_mask"], rows, strict=True):
            assert ids[mask.bool()].tolist() == row
        targets = [token for rollout in batch.rollouts for token in rollout.completion_ids]
        assert batch.packed["targets"].tolist() == targets
        # Each completion token is predicted one place before it stands.
        assert inputs["input_ids"].flatten()[batch.packed["positions"] + 1].tolist() == targets


def test_items_of_a_batch_are_the_tokens_trained_on(window):
    batches = [inputs["micro_batch"] for inputs in window[0]]
    assert len(batches) == 2
    assert window[1] == sum(int(((batch.chunks >= 0) | batch.charged).sum()) for batch in batches)


def test_the_loss_of_a_step_is_a_mean_over_its_items(trainer, window):
    """Whatever the micro-batch: both are divided by the number of the whole step."""
    micro_batches, count = window
    losses = [trainer.compute_loss(trainer.model, inputs, num_items_in_batch=count) for inputs in micro_batches]
    sums = [trainer.compute_loss(trainer.model, inputs, num_items_in_batch=1) for inputs in micro_batches]
    torch.testing.assert_close(sum(losses), sum(sums) / count)


def test_a_teacher_of_another_vocabulary_size_is_what_this_is_for(trainer):
    """`DistillationTrainer` refuses it."""
    sizes = [model.config.vocab_size for model in (trainer.model, trainer.teacher_model)]
    assert sizes == [49152, 32000]


def test_every_epoch_has_its_own_order(trainer):
    loader = trainer.get_train_dataloader()
    orders = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        orders.append([row for batch in loader for row in batch["prompts"].tolist()])
    assert len(orders[0]) == len(orders[1]) == len(PROMPTS)
    assert orders[0] != orders[1]


def test_training_on_prompts_alone_moves_every_parameter_and_keeps_it_finite(trainer):
    """Last, since it changes the trainer of this module."""
    before = parameters_of(trainer.model)
    trainer.train()
    assert changed(before, trainer.model) == before.keys()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", ["top_p", "min_p", "repetition_penalty", "max_tool_calling_iterations"])
def test_an_argument_of_distillation_that_is_not_here_is_an_error(name):
    """Sampling is from the plain softmax: a cut-off distribution is not the one that is scored."""
    with pytest.raises(TypeError, match=name):
        CrossTokenizerGKDConfig("out", **{name: 1})
