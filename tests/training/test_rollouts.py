"""Sampling: what the student draws is what it is scored on, and nothing else is disturbed by it."""

import random

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests import real_tokenizers
from tests.training.fixed_rollouts import lora, train_one_step, whole_step
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.training.data import PromptCollator
from trl_xtok.training.scoring import causal_lm
from trl_xtok.training.setup import finish_generation_config, make_aligner


@pytest.fixture
def drawn(monkeypatch):
    """Log-prob and id of every draw, step by step: two tensors `[batch]` each."""
    steps = []
    multinomial = torch.multinomial

    def record(probabilities, *args, **kwargs):
        ids = multinomial(probabilities, *args, **kwargs)
        steps.append((probabilities.gather(1, ids)[:, 0].log(), ids[:, 0]))
        return ids

    monkeypatch.setattr(torch, "multinomial", record)
    return steps


@pytest.fixture
def forwards():
    """Records `(batch, length, with cache)` of each forward of a backbone."""

    def watch(model):
        calls = []

        def record(module, args, kwargs):
            cache = kwargs.get("past_key_values")
            filled = cache is not None and cache.get_seq_length() > 0
            calls.append((*kwargs["input_ids"].shape, filled))

        causal_lm(model).base_model.register_forward_pre_hook(record, with_kwargs=True)
        return calls

    return watch


@pytest.fixture
def opinionated(load, student_path):
    """A student whose own generation settings change what is sampled."""
    model = load(student_path)
    model.generation_config.update(
        do_sample=False,
        repetition_penalty=5.0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        temperature=0.1,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(1000)),
        max_new_tokens=2,
    )
    return model


def sampled(micro_batches) -> list[list[int]]:
    return [rollout.completion_ids for inputs in micro_batches for rollout in inputs["micro_batch"].rollouts]


def student_tokenizer():
    return {"processing_class": real_tokenizers.smollm2()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("make_config", [lambda: None, lora], ids=["full", "adapter"])
def test_sampled_log_probs_are_the_scored_ones(make_trainer, opinionated, drawn, temperature, make_config):
    trainer = make_trainer(
        student=opinionated,
        arguments={"peft_config": make_config(), **student_tokenizer()},
        temperature=temperature,
        max_new_tokens=5,
        generation_batch_size=8,
    )
    (inputs,), _ = whole_step(trainer, PROMPTS, batch_size=8)
    batch = inputs["micro_batch"]
    logps, ids = (torch.stack(column, dim=1) for column in zip(*drawn, strict=True))
    lengths = [len(rollout.completion_ids) for rollout in batch.rollouts]
    assert max(lengths) == 5
    assert sampled([inputs]) == [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    trainer.model.train()
    scored = trainer._student_logps(trainer.model, batch.packed)
    expected = torch.cat([row[:length] for row, length in zip(logps, lengths, strict=True)])
    torch.testing.assert_close(scored, expected, atol=1e-4, rtol=1e-4)


def test_generation_settings_of_the_model_are_its_own_again(make_trainer, opinionated):
    before = opinionated.generation_config.to_dict()
    trainer = make_trainer(student=opinionated, arguments=student_tokenizer())
    whole_step(trainer, PROMPTS, batch_size=8)
    assert opinionated.generation_config.to_dict() == before


@pytest.mark.parametrize("make_config", [lambda: None, lora], ids=["full", "adapter"])
def test_cache_is_used_and_checkpointing_comes_back(make_trainer, forwards, make_config):
    trainer = make_trainer(
        arguments={"peft_config": make_config()},
        activation_checkpointing=True,
        gradient_accumulation_steps=2,
        generation_batch_size=3,
    )
    model = causal_lm(trainer.model)
    calls = forwards(trainer.model)
    trainer.train()

    cached = [call for call in calls if call[2]]
    assert {length for _, length, _ in cached} == {1}
    # Four prompts in groups of three; each group reads its prompts once and then adds five tokens.
    assert [batch for batch, _, _ in cached] == [3] * 5 + [1] * 5
    whole = [call for call in calls if not call[2]]
    assert [batch for batch, _, _ in whole[:2]] == [3, 1]
    assert len(whole) >= 4, "each micro-batch is scored once more, with gradient"
    assert model.is_activation_checkpointing
    assert all(layer.gradient_checkpointing for layer in model.base_model.layers)
    assert trainer.state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_gradient_after_sampling(
    padded_student_path, byteless_teacher_path, tmp_path, use_reentrant
):
    """It is switched off and on again around the rollouts, and an adapter's inputs must still require a gradient."""
    kinds = [
        {},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": use_reentrant}},
    ]
    plain, checkpointed = (
        train_one_step(
            padded_student_path,
            byteless_teacher_path,
            str(tmp_path),
            None,
            prompts=["a b"] * 4,
            peft_config=lora(),
            dropped_advantage=0.0,
            **kind,
        ).gradients
        for kind in kinds
    )
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert gradient.count_nonzero() > 0
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make_config", [lambda: None, lora], ids=["full", "adapter"])
def test_first_window_is_scored_in_the_mode_of_all_others(make_trainer, make_config):
    """Models are loaded in evaluation mode, and a resumed run starts with such a model in the midst of training."""
    trainer = make_trainer(arguments={"peft_config": make_config()})
    whole_step(trainer, PROMPTS, batch_size=8)
    assert all(module.training for module in trainer.model.modules())
    assert not any(module.training for module in trainer.teacher_model.modules())


def test_any_stop_id_of_the_model_ends_a_completion(make_trainer, load, student_path):
    student = load(student_path)
    stops = {*range(0, student.config.vocab_size, 4), real_tokenizers.smollm2().eos_token_id}
    student.generation_config.eos_token_id = sorted(stops)
    trainer = make_trainer(student=student, arguments=student_tokenizer(), max_new_tokens=8)
    micro_batches, _ = whole_step(trainer, PROMPTS, batch_size=8)
    rollouts = micro_batches[0]["micro_batch"].rollouts
    assert any(rollout.stopped for rollout in rollouts)
    for rollout in rollouts:
        *before, last = rollout.completion_ids
        assert not stops.intersection(before)
        assert rollout.stopped == (last in stops)
        assert rollout.stopped or len(rollout.completion_ids) == 8
        assert (rollout.alignment.end_chunk >= 0) == rollout.stopped


def test_a_base_model_stops_where_its_template_ends_a_turn():
    """Its generation config ends at the end of a text only, and so would every answer run on."""
    tokenizer = real_tokenizers.qwen3_base()
    ends = {tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")}
    collator = PromptCollator(tokenizer, real_tokenizers.mistral1())
    for given in (None, tokenizer.eos_token_id, [tokenizer.eos_token_id]):
        config = GenerationConfig(eos_token_id=given)
        finish_generation_config(config, tokenizer)
        assert set(config.eos_token_id) == ends
        assert make_aligner(collator, config).student_stop_ids == ends
    more = GenerationConfig(eos_token_id=[*ends, 7])
    finish_generation_config(more, tokenizer)
    assert make_aligner(collator, more).student_stop_ids == {*ends, 7}


def test_sampling_leaves_all_random_states_alone(make_trainer):
    trainer = make_trainer()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    whole_step(trainer, PROMPTS, batch_size=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[2], strict=True))


def test_rollouts_depend_on_seed_and_step_only(make_trainer):
    trainer = make_trainer()

    def draw(seed, step):
        trainer.args.seed, trainer.state.global_step = seed, step
        torch.manual_seed(random.randrange(2**31))
        return sampled(whole_step(trainer, PROMPTS, batch_size=4)[0])

    first = draw(1, 0)
    assert draw(1, 0) == first
    assert draw(1, 1) != first
    assert draw(2, 0) != first


def test_evaluation_draws_the_same_every_time(make_trainer):
    trainer = make_trainer(arguments={"eval_dataset": prompt_dataset()})
    first = trainer.evaluate()
    trainer.state.global_step += 1
    second = trainer.evaluate()
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_xtok/reverse_kl_per_byte"] == second["eval_xtok/reverse_kl_per_byte"]
