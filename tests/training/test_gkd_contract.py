"""What a user of `GKDTrainer` relies on, as far as no other test proves it for ours."""

import math

import pytest
import torch
from datasets import DatasetDict, IterableDatasetDict
from torch import nn
from transformers import GenerationConfig

from tests import real_tokenizers
from tests.training.fixed_rollouts import FixedTrainer, rollouts, whole_step
from tests.training.runs import logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.objectives import EventMap, LMHead, vocab_jsd
from trl_xtok.training.rollouts import generate_completions
from trl_xtok.training.trl_compat import GKDConfig, GKDTrainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, padded_student_path, teacher_path) -> FixedTrainer:
    """One trainer for all tests that change nothing of it."""
    args = tiny_args(tmp_path_factory.mktemp("gkd"), temperature=0.7, max_new_tokens=9)
    made = tiny_trainer(padded_student_path, teacher_path, args, trainer_class=FixedTrainer)
    made.rollouts = rollouts()
    return made


# Sampling.


class Writer(nn.Module):
    """Writes what it is told, and keeps what it was asked with."""

    def __init__(self, *completions: list[int]):
        super().__init__()
        self.completions, self.generation_config, self.asked = torch.tensor(completions), None, {}

    def generate(self, input_ids, **rest):
        self.asked = {"input_ids": input_ids, **rest}
        return type("Output", (), {"sequences": torch.cat([input_ids, self.completions], 1)})


def completions_of(writer: Writer, prompts: list[list[int]], *, eos: int | list[int] | None, pad: int = 0):
    config = GenerationConfig(eos_token_id=eos, pad_token_id=pad)
    return generate_completions(writer, prompts, config, len(prompts), torch.device("cpu"))


def test_greedy_outputs_are_the_same_twice_and_begin_with_the_prompt():
    inputs = {"prompts": torch.tensor([[7, 8, 9]]), "prompt_attention_mask": torch.ones(1, 3, dtype=torch.long)}
    config = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    model = tiny_model("llama", 300)
    outputs = [CrossTokenizerGKDTrainer.generate_on_policy_outputs(model, inputs, config) for _ in range(2)]
    for one, other in zip(*outputs, strict=True):
        assert one.equal(other)
    assert outputs[0][0][:, :3].equal(inputs["prompts"])
    assert outputs[0][2][:, :3].eq(-100).all()


def test_prompts_of_unequal_length_are_no_part_of_what_is_trained_on():
    writer = Writer([11, 12, 2], [13, 2, 0])
    assert completions_of(writer, [[5], [6, 7, 8]], eos=2) == [[11, 12, 2], [13, 2]]
    assert writer.asked["input_ids"].tolist() == [[0, 0, 5], [6, 7, 8]]
    assert writer.asked["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_a_pad_token_that_is_the_end_token_hides_neither_the_prompt_nor_the_end():
    writer = Writer([11, 2, 2], [12, 13, 14])
    assert completions_of(writer, [[2, 5], [6, 2]], eos=2, pad=2) == [[11, 2], [12, 13, 14]]
    assert writer.asked["attention_mask"].tolist() == [[1, 1], [1, 1]]


def test_without_an_end_token_a_completion_is_whole():
    assert completions_of(Writer([11, 2, 0]), [[5]], eos=None) == [[11, 2, 0]]


def test_each_completion_ends_at_the_first_of_several_end_tokens():
    assert completions_of(Writer([11, 3, 2], [2, 3, 11]), [[5], [6]], eos=[2, 3]) == [[11, 3], [2]]


def test_the_end_that_was_sampled_is_trained_on(trainer):
    (inputs,), _ = whole_step(trainer, [PROMPTS[0]], 1)
    batch = inputs["micro_batch"]
    assert batch.packed["targets"][-1] == real_tokenizers.smollm2().eos_token_id
    assert batch.chunks[-1] >= 0


def test_generation_config(trainer):
    config, tokenizer = trainer.generation_config, trainer.processing_class
    assert (config.max_new_tokens, config.temperature, config.do_sample) == (9, 0.7, True)
    assert (config.top_k, config.top_p, config.pad_token_id) == (0, 1.0, tokenizer.pad_token_id)
    ends = config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])


# The divergence: `exact_jsd` against its definition. That it is GKD's is tested in `test_vocab_jsd.py`.


def jsd(student: torch.Tensor, teacher: torch.Tensor, **options) -> torch.Tensor:
    """The divergence at each position, of logits given as hidden states of an identity head."""
    head = LMHead(torch.eye(student.shape[-1]))
    return vocab_jsd(
        student, head, teacher, head, student_events=EventMap(), teacher_events=EventMap(), **options
    ).divergences


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 12), torch.randn(6, 12)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_equal_distributions_do_not_diverge(logits, beta):
    flat = torch.zeros(3, 12)
    torch.testing.assert_close(jsd(flat, flat + 4, beta=beta), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(jsd(logits[0], logits[0], beta=beta), torch.zeros(6), atol=1e-6, rtol=0)


def test_the_ends_of_beta_are_the_two_kullback_leibler_divergences(logits):
    student, teacher = (side.log_softmax(-1) for side in logits)
    torch.testing.assert_close(jsd(*logits, beta=0.0), (teacher.exp() * (teacher - student)).sum(-1))
    torch.testing.assert_close(jsd(*logits, beta=1.0), (student.exp() * (student - teacher)).sum(-1))


def test_beta_is_symmetric_in_the_middle_only(logits):
    student, teacher = logits
    torch.testing.assert_close(jsd(student, teacher, beta=0.5), jsd(teacher, student, beta=0.5))
    assert not torch.allclose(jsd(student, teacher, beta=0.1), jsd(teacher, student, beta=0.1))


def test_a_high_temperature_flattens_and_divides_both_sides(logits):
    hot, cold = (jsd(*logits, beta=0.5, temperature=temperature).sum() for temperature in (5.0, 1.0))
    assert 0 < hot < cold
    scaled = jsd(logits[0] / 5, logits[1] / 5, beta=0.5).sum()
    torch.testing.assert_close(hot, scaled)


def test_the_reductions_of_gkd_are_still_there(logits):
    """The static function is inherited, for those who call it."""
    assert CrossTokenizerGKDTrainer.generalized_jsd_loss is GKDTrainer.generalized_jsd_loss
    each = CrossTokenizerGKDTrainer.generalized_jsd_loss(logits[0][None], logits[1][None], reduction="none").sum(-1)
    torch.testing.assert_close(each[0], jsd(*logits, beta=0.5))


# The trainer.


def test_training_with_evaluations_and_checkpoints(tmp_path, student_path, teacher_path):
    args = tiny_args(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2)
    trainer = CrossTokenizerGKDTrainer(
        student_path, teacher_path, args, train_dataset=prompt_dataset(), eval_dataset=prompt_dataset(PROMPTS[:2])
    )
    assert math.isfinite(trainer.train().training_loss)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 4]
    assert "train_loss" in trainer.state.log_history[-1]
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda data: DatasetDict({"test": data}),
        lambda data: IterableDatasetDict({"test": data.to_iterable_dataset()}),
        lambda data: {"test": data.to_iterable_dataset()},
    ],
    ids=["DatasetDict", "IterableDatasetDict", "dict of streams"],
)
def test_every_container_of_evaluation_data_is_kept_as_it_is(tmp_path, student_path, teacher_path, make):
    """The other four are in `test_trainer.py`."""
    container = make(prompt_dataset(PROMPTS[:2]))
    args = tiny_args(tmp_path, max_new_tokens=3)
    trainer = tiny_trainer(student_path, teacher_path, args, eval_dataset=container, **shared_tokenizers())
    assert trainer.eval_dataset is container
    assert "eval_test_loss" in trainer.evaluate()


def test_the_loss_is_a_sum_over_the_items_of_the_batch(trainer):
    (inputs,), count = whole_step(trainer, PROMPTS, len(PROMPTS))
    once, half = (trainer.compute_loss(trainer.model, inputs, num_items_in_batch=n) for n in (count, 2 * count))
    torch.testing.assert_close(half, once / 2)
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True, num_items_in_batch=count)
    assert outputs is None
    torch.testing.assert_close(loss, once)


def test_every_completion_token_is_in_the_batch_whatever_the_length_of_its_prompt(trainer):
    """All are scored; those that cannot be trained on are counted."""
    (inputs,), count = whole_step(trainer, PROMPTS, len(PROMPTS))
    batch, expected = inputs["micro_batch"], [token for ids in rollouts().values() for token in ids]
    assert batch.packed["targets"].tolist() == expected
    scored, charged, trained, every = batch.counts().tolist()
    assert every == len(expected) == scored + sum(batch.dropped.values())
    assert trained == scored + charged == count


def test_arguments_of_gkd_are_arguments_here(tmp_path):
    theirs = {name: field.default for name, field in GKDConfig.__dataclass_fields__.items() if field.init}
    ours = CrossTokenizerGKDConfig.__dataclass_fields__
    assert theirs.keys() <= ours.keys()
    changed = {name for name, default in theirs.items() if ours[name].default != default}
    assert changed == {"temperature", "lmbda"}


def test_attributes_of_gkd_are_attributes_here(trainer):
    assert isinstance(trainer, GKDTrainer)
    assert (trainer.lmbda, trainer.beta, trainer.temperature, trainer.seq_kd) == (1.0, 0.5, 0.7, False)
    assert trainer.generation_kwargs["max_new_tokens"] == 9
    assert isinstance(trainer.teacher_model, nn.Module)


def test_a_step_of_several_micro_batches_is_logged_as_one(tmp_path, student_path, teacher_path):
    args = tiny_args(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_new_tokens=3)
    trainer = tiny_trainer(student_path, teacher_path, args, **shared_tokenizers())
    trainer.train()
    (entry,) = logged(trainer)
    assert entry["loss"] == pytest.approx(trainer.state.log_history[-1]["train_loss"])
