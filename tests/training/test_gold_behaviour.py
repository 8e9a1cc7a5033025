"""What a user of TRL's `GOLDTrainer` relies on between two tokenizers, as far as no other test proves it for ours."""

import pytest
import torch

from tests import real_tokenizers
from tests.training.fixed_rollouts import FixedTrainer, loss_and_gradients, scored_step, stop, text
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig, TokenizerAligner
from trl_xtok.errors import DataError


TEXT = "Qwen3 reads 12,345 \U0001f600 emoji and \u4f60\u597d, too: antifungal snowfall."


@pytest.fixture(scope="module")
def build(tmp_path_factory, student_path, qwen_teacher_path):
    """A SmolLM2 student and a Qwen3 teacher; the same trainer again for the same arguments."""
    made = {}

    def build_trainer(**changes) -> FixedTrainer:
        key = tuple(changes.items())
        if key not in made:
            trainer = tiny_trainer(
                student_path,
                qwen_teacher_path,
                tiny_args(tmp_path_factory.mktemp("gold"), **changes),
                trainer_class=FixedTrainer,
                processing_class=real_tokenizers.smollm2(),
                train_dataset=prompt_dataset().add_column("completion", [TEXT] * len(PROMPTS)),
            )
            trainer.rollouts = {prompt: text(f" {prompt} {TEXT}") + stop() for prompt in PROMPTS}
            made[key] = trainer
        return made[key]

    return build_trainer


@pytest.mark.parametrize("teacher", [real_tokenizers.qwen3, real_tokenizers.mistral1])
def test_every_token_of_either_side_is_in_one_chunk_of_equal_text(teacher):
    student = real_tokenizers.smollm2()
    alignment = TokenizerAligner(student, teacher()).align(text(TEXT))
    assert alignment.coverage == 1
    for chunks in (alignment.student_chunks, alignment.teacher_chunks):
        assert sorted(set(chunks)) == list(range(alignment.num_chunks))
        assert list(chunks) == sorted(chunks)
    for chunk in range(alignment.num_chunks):
        sides = [
            tokenizer.decode([i for i, c in zip(ids, chunks, strict=True) if c <= chunk])
            for tokenizer, ids, chunks in (
                (student, text(TEXT), alignment.student_chunks),
                (teacher(), alignment.teacher_ids, alignment.teacher_chunks),
            )
        ]
        # A chunk may end within a character; what stands before it is the same.
        assert sides[0].rstrip("\ufffd").strip() == sides[1].rstrip("\ufffd").strip()


@pytest.mark.parametrize("objective", ["chunk_rkl", "chunk_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd"])
def test_a_student_of_another_family_than_its_teacher_gets_a_finite_loss(build, objective):
    loss, gradients = loss_and_gradients(build(objective=objective), PROMPTS, 4)
    assert loss.isfinite()
    assert loss != 0
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_the_hybrid_loss_is_the_weighted_sum_of_its_parts(build):
    """Compared chunks with weight 1, credited ones with `chunk_weight`."""
    losses = {
        weight: loss_and_gradients(build(objective="hybrid", chunk_weight=weight), PROMPTS, 4)[0]
        for weight in (1.0, 2.0, 4.0)
    }
    credited = losses[2.0] - losses[1.0]
    compared = losses[1.0] - credited
    assert compared > 0
    assert abs(credited) > 1e-3
    torch.testing.assert_close(losses[4.0], compared + 4 * credited, atol=1e-4, rtol=1e-4)


def test_chunk_scores_multiply_the_probabilities_of_split_tokens(build):
    """A chunk of several teacher tokens is as probable as the teacher finds all of them one after the other."""
    (batch,) = scored_step(trainer := build(objective="chunk_rkl"), PROMPTS[:1], 1)
    (rollout,) = batch.rollouts
    logps = trainer.teacher.token_logps([rollout.teacher_prompt_ids], [rollout.alignment.teacher_ids])
    chunks = torch.tensor(rollout.alignment.teacher_chunks)
    longer = [chunk for chunk in range(batch.num_chunks) if (chunks == chunk).sum() > 1]
    assert longer
    for chunk in longer:
        torch.testing.assert_close(batch.teacher_logps[chunk].exp(), logps[chunks == chunk].exp().prod())


def test_the_teacher_scores_its_own_prompt_and_the_plain_completion(build):
    chat = [{"role": "user", "content": "How are you?"}]
    trainer = build(objective="chunk_rkl")
    student, teacher = trainer.data_collator.tokenize(chat)
    shown = trainer.data_collator.teacher_tokenizer.decode(teacher)
    expected = real_tokenizers.qwen3().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert shown == expected
    # The end of turn of the student is the end of turn of the teacher, and no text.
    alignment = trainer.aligner.align(text("Fine") + stop())
    assert alignment.teacher_ids[-1] == trainer.aligner.teacher_end_id
    assert "<|im_end|>" not in trainer.data_collator.teacher_tokenizer.convert_ids_to_tokens(
        alignment.teacher_ids[:-1]
    )
    assert trainer.processing_class.decode(student) != shown


def test_a_prompt_that_leaves_no_room_is_refused_and_never_cut(build):
    """GOLD cuts prompts; here a prompt is what both models read, whole, and its completion fits behind it."""
    collator = build(objective="chunk_jsd", lmbda=0.0, max_new_tokens=5, max_length=24).data_collator
    with pytest.raises(DataError, match="only 19 leave room"):
        collator([{"prompt": "one " * 20, "completion": "two"}])
    row = {"prompt": "Hi", "completion": " one two three four" * 10}
    batch = collator([row])
    whole = text(row["prompt"] + row["completion"])
    assert batch["completions"][0].tolist() == whole[len(text("Hi")) : 24]


def test_a_budget_is_that_of_the_longest_prompt_and_not_of_padding(build):
    collator = build(objective="chunk_jsd", lmbda=0.0, max_new_tokens=5, max_length=24).data_collator
    rows = [{"prompt": " one" * 19, "completion": " two" * 30}, {"prompt": "Hi", "completion": " two" * 30}]
    lengths = collator(rows)["completion_attention_mask"].sum(1).tolist()
    assert lengths == [24 - len(text(" one" * 19)), 24 - len(text("Hi"))]


def test_only_the_last_assistant_turn_is_trained_on(build):
    trainer = build(objective="chunk_jsd", lmbda=0.0, max_new_tokens=5)
    chat = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in chat]
    batch = trainer.data_collator([{"messages": messages}])
    assert trainer.processing_class.decode(batch["completions"][0]) == "d<|im_end|>"
    assert trainer.processing_class.decode(batch["prompts"][0]).count("<|im_start|>assistant") == 2


@pytest.mark.parametrize("name", ["use_uld_loss", "num_generations", "uld_skip_student_eos"])
def test_an_argument_of_gold_that_is_not_here_is_an_error(name):
    with pytest.raises(TypeError, match=name):
        CrossTokenizerGKDConfig("out", **{name: 1})
