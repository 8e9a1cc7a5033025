"""Optimizer steps that train on completions of the dataset or of the teacher."""

import pytest
import torch
from datasets import Dataset

from tests import real_tokenizers
from tests.training.fixed_rollouts import FixedTrainer, loss_and_gradients, stop, text
from tests.training.reference import Reference, token_logps
from tests.training.tiny_models import PROMPTS, save, tiny_args, tiny_model, tiny_trainer
from trl_xtok.errors import ConfigError, DataError, TemplateError
from trl_xtok.training.off_policy import is_on_policy


@pytest.fixture
def build(tmp_path, padded_student_path, teacher_path):
    def build_trainer(teacher=teacher_path, dataset=None, **changes):
        settings = {"lmbda": 0.0, "max_new_tokens": 40} | changes
        rows = {"prompt": PROMPTS, "completion": [f" {prompt} again, 2024 times.\n" for prompt in PROMPTS]}
        return tiny_trainer(
            padded_student_path,
            teacher,
            tiny_args(tmp_path, **settings),
            trainer_class=FixedTrainer,
            train_dataset=Dataset.from_dict(rows) if dataset is None else dataset,
        )

    return build_trainer


def completion(trainer, row):
    """The completion of a row in student tokens."""
    return trainer.data_collator.completion(row, trainer.data_collator.tokenize_row(row)[0])


def window(trainer, rows, batch_size=3):
    trainer.model.train()
    batches = [trainer.data_collator(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]
    return trainer._make_window(batches, "off_policy")


def gradients_of(trainer, rows, batch_size=3):
    trainer.model.zero_grad()
    micro_batches, trained = window(trainer, rows, batch_size)
    losses = []
    for inputs in micro_batches:
        losses.append(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=trained))
        losses[-1].backward()
    return sum(losses).detach(), {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}


def test_the_coin_is_that_of_the_step(tmp_path):
    half = tiny_args(tmp_path, lmbda=0.5, objective="chunk_jsd")
    flips = [is_on_policy(half, step) for step in range(2000)]
    assert 0.45 < sum(flips) / len(flips) < 0.55
    assert flips == [is_on_policy(half, step) for step in range(2000)]
    assert flips != [
        is_on_policy(tiny_args(tmp_path, lmbda=0.5, objective="chunk_jsd", seed=1), s) for s in range(2000)
    ]
    assert not any(is_on_policy(tiny_args(tmp_path, lmbda=0.0, objective="chunk_jsd"), step) for step in range(100))
    assert all(is_on_policy(tiny_args(tmp_path), step) for step in range(100))


@pytest.mark.parametrize("batch_size", [1, 3, 100], ids=["micro-batches of one", "ragged", "one micro-batch"])
def test_cross_entropy_alone_is_that_of_the_completion(build, byteless_teacher_path, batch_size):
    """What `SFTTrainer` trains on: the mean over the tokens after the prompt, with the end of the text.

    Also of those that the teacher, which is not asked, could not spell.
    """
    trainer = build(byteless_teacher_path, objective="chunk_rkl", crossentropy_weight=0.7)
    rows = list(trainer.train_dataset)
    actual, gradients = gradients_of(trainer, rows, batch_size)
    reference, logps = Reference(trainer), []
    for row in rows:
        prompt_ids, _ = reference.tokenize(row["prompt"])
        whole = trainer.processing_class.encode(row["prompt"] + row["completion"], add_special_tokens=False)
        ids = whole[len(prompt_ids) :] + stop()
        assert whole[: len(prompt_ids)] == prompt_ids
        logps.append(token_logps(reference.student, prompt_ids, ids))
    expected = -0.7 * torch.cat(logps).mean()
    expected.backward()
    torch.testing.assert_close(actual, expected.detach().float(), atol=1e-5, rtol=1e-5)
    for name, gradient in reference.gradients().items():
        torch.testing.assert_close(gradients[name], gradient.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("objective", ["chunk_jsd", "shared_vocab_jsd", "prefix_jsd"])
def test_divergences_are_those_of_the_same_text_as_a_rollout(build, objective):
    """And credit, which holds for samples only, is left out: a `chunk_weight` of 0 makes the rollouts equal."""
    trainer = build(objective=objective)
    rows = list(trainer.train_dataset)
    actual, gradients = gradients_of(trainer, rows)
    sampled = build(objective=objective, lmbda=1.0, **({"chunk_weight": 0.0} if objective == "prefix_jsd" else {}))
    sampled.rollouts = {row["prompt"]: completion(trainer, row) for row in rows}
    expected, expected_gradients = loss_and_gradients(sampled, PROMPTS, 3)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-6, rtol=1e-5)


def test_hybrid_is_shared_vocab_jsd_where_it_has_no_credit(build):
    losses = [gradients_of(trainer := build(objective=name), list(trainer.train_dataset))[0]
              for name in ("hybrid", "shared_vocab_jsd")]  # fmt: skip
    assert losses[0] == losses[1] > 0


def test_divergence_and_cross_entropy_add_up(build):
    rows = list(build(objective="chunk_jsd").train_dataset)
    both = gradients_of(build(objective="chunk_jsd", crossentropy_weight=0.3), rows)[0]
    divergence = gradients_of(build(objective="chunk_jsd"), rows)[0]
    cross_entropy = gradients_of(build(objective="chunk_rkl", crossentropy_weight=0.3), rows)[0]
    trainer = build(objective="chunk_jsd")
    counts = sum(inputs["micro_batch"].counts() for inputs in window(trainer, rows)[0])
    # Every token is imitated, but not every token is in a chunk.
    torch.testing.assert_close(both, divergence * counts[0] / counts[3] + cross_entropy, atol=1e-5, rtol=1e-5)


def test_conversations_go_on_as_the_template_does(build):
    chats = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello <b>you</b>!"}],
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    ]
    trainer = build(dataset=Dataset.from_dict({"messages": chats}), objective="chunk_jsd")
    expected = [text("Hello <b>you</b>!") + stop(), text("4") + stop()]
    assert [completion(trainer, {"messages": chat}) for chat in chats] == expected
    split = [{"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    assert [completion(trainer, row) for row in split] == expected
    batch = trainer.data_collator([{"messages": chat} for chat in chats])
    assert batch["completions"].shape == batch["completion_attention_mask"].shape == (2, max(map(len, expected)))


def test_a_completion_that_would_change_the_prompts_last_token_is_encoded_apart(build):
    trainer = build(objective="chunk_jsd")
    ids = completion(trainer, {"prompt": "The capital of Franc", "completion": "e is Paris."})
    assert ids == text("e is Paris.") + stop()
    assert text("The capital of France")[:-1] != text("The capital of Franc")


def test_completions_are_cut_where_the_context_ends(build):
    """As `max_length` bounds rows in GKD; `max_new_tokens` bounds what is sampled."""
    trainer = build(objective="chunk_jsd", max_new_tokens=5, max_length=24)
    row = {"prompt": "Hi", "completion": " one" * 40}
    assert len(text("Hi") + completion(trainer, row)) == 24
    short = {"prompt": "Hi", "completion": " one" * 10}
    assert completion(trainer, short) == text(" one" * 10) + stop()


@pytest.mark.parametrize("answer", ["    x = 1", "\n\nHello", " Hello"])
def test_white_space_at_the_beginning_of_an_answer_is_kept(build, answer):
    trainer = build(objective="chunk_jsd")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    ids = completion(trainer, {"messages": chat})
    assert trainer.processing_class.decode(ids[:-1]) == answer
    assert ids[-1:] == stop()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            "leaves out the `tool_calls`",
        ),
        ({"role": "user", "content": "Hello"}, "must be one message of the role 'assistant'"),
        ({"role": "assistant", "content": None}, "has the content None"),
        ("Hello", "Message 1 of the conversation is 'Hello'"),
    ],
)
def test_an_answer_that_the_template_does_not_write_is_refused(build, answer, message):
    with pytest.raises(TemplateError, match=message):
        completion(
            build(objective="chunk_jsd"), {"prompt": [{"role": "user", "content": "Hi"}], "completion": [answer]}
        )


def test_a_mixed_run_logs_both_kinds_of_steps(build):
    trainer = build(objective="prefix_jsd", lmbda=0.5, crossentropy_weight=0.1, max_steps=6, max_new_tokens=6)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    on_policy = [is_on_policy(trainer.args, step) for step in range(6)]
    assert {True, False} == set(on_policy)
    assert ["xtok/coverage" in log for log in logs] == on_policy
    off = [log for log in logs if "off_policy/xtok/coverage" in log]
    assert len(off) == on_policy.count(False)
    for log in off:
        assert log["off_policy/xtok/cross_entropy"] > 0
        assert log["off_policy/xtok/vocab_jsd"] > 0
        assert log["off_policy/xtok/coverage"] > 0.8
        assert "off_policy/xtok/reverse_kl_per_byte" not in log


def test_nothing_is_joined_where_nothing_is_scored(build):
    options = {"objective": "chunk_rkl", "crossentropy_weight": 1.0, "max_lookahead": 0.0}
    trainer = build(lmbda=0.5, max_steps=6, max_new_tokens=6, **options)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert any("off_policy/xtok/coverage" in log for log in logs)
    assert any("xtok/joined_ratio" in log for log in logs)
    assert not any("off_policy/xtok/joined_ratio" in log for log in logs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "chunk_rkl"}, "`lmbda=0.5` leaves optimizer steps to completions"),
        ({"objective": "chunk_jsd", "crossentropy_weight": 0.1, "temperature": 0.8}, "at temperature 1"),
        ({"objective": "chunk_jsd", "crossentropy_weight": 0.1, "lmbda": 1.0}, "`lmbda=1.0`"),
        ({"objective": "chunk_jsd", "crossentropy_weight": -0.1}, "`crossentropy_weight` must be finite"),
        ({"objective": "chunk_jsd", "seq_kd": True, "lmbda": 1.0}, "`seq_kd=True` has no effect"),
    ],
)
def test_off_policy_steps_that_would_train_on_nothing_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_args(tmp_path, **{"lmbda": 0.5} | changes)


def test_what_auto_chooses_must_have_something_to_train_on(build, same_tokenizer_teacher_path):
    with pytest.raises(
        ConfigError, match="`objective='chunk_rkl'`, which `auto` chooses for these two tokenizers, holds"
    ):
        build(objective="auto")
    assert build(same_tokenizer_teacher_path, objective="auto").objective.name == "exact_jsd"


def test_prompts_to_evaluate_on_need_no_completion(build):
    trainer = build(objective="chunk_jsd", max_new_tokens=4)
    assert trainer.evaluate(Dataset.from_dict({"prompt": PROMPTS}))["eval_loss"] > 0
    mixed = Dataset.from_dict({"prompt": PROMPTS[:2], "completion": [" one", None]})
    assert trainer.evaluate(mixed)["eval_loss"] > 0


@pytest.mark.parametrize(
    "rows",
    [
        {"prompt": ["Hi"]},
        {"prompt": ["Hi"], "completion": [""]},
        {"messages": [[{"role": "user", "content": "Hi"}]]},
    ],
)
def test_rows_without_a_completion_are_refused(build, rows):
    with pytest.raises(DataError, match="completions are asked for"):
        build(objective="chunk_jsd", dataset=Dataset.from_dict(rows))


def test_a_later_row_without_completion_shows_before_training_or_at_its_step(build):
    rows = Dataset.from_dict({"prompt": ["Hi", "Ho"], "completion": [" there", None]})
    with pytest.raises(DataError, match=r"Row 1 of `train_dataset`: .*completions are asked for"):
        build(objective="chunk_jsd", dataset=rows)
    trainer = build(objective="chunk_jsd", dataset=rows.to_iterable_dataset(), max_steps=2)
    with pytest.raises(DataError, match="one of its rows has no completion"):
        trainer.train()


def test_a_mixed_run_goes_on_as_it_would_have_gone_on(build):
    """The coin, the samples of both models and the data are those of the step, not of the process."""
    rows = Dataset.from_dict({"prompt": PROMPTS * 2})
    # Both kinds of steps, before the checkpoint and after it.
    options = {"objective": "prefix_jsd", "lmbda": 0.5, "seq_kd": True, "max_steps": 4, "max_new_tokens": 6, "seed": 4}
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = build(dataset=rows, **options, **saving)
    whole.train()
    kinds = [is_on_policy(whole.args, step) for step in range(4)]
    assert kinds[0] != kinds[1]
    assert kinds[2] != kinds[3]
    resumed = build(dataset=rows, **options)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-2")
    for name, parameter in whole.model.named_parameters():
        torch.testing.assert_close(resumed.model.get_parameter(name), parameter, atol=0, rtol=0)


def test_what_is_cut_off_is_counted(build, tmp_path):
    """The end of a completion by the student's `max_length`, and what of it the teacher has no room for."""
    small = save(tiny_model("llama", 32000, max_position_embeddings=16), real_tokenizers.mistral1(), tmp_path / "t")
    rows = Dataset.from_dict({"prompt": ["Hi", "Ho"], "completion": [" one two" * 30, " three"]})
    for teacher, reason in ((None, "unfinished"), (small, "teacher")):
        options = {"objective": "chunk_jsd", "max_new_tokens": 5, "max_length": 24, "dataset": rows}
        trainer = build(**options, **({"teacher": teacher} if teacher else {}))
        trainer.train()
        log = next(log for log in trainer.state.log_history if "loss" in log)
        assert log["off_policy/completions/max_length"] == 24 - len(text("Hi"))
        assert log["off_policy/completions/clipped_ratio"] == 0.5
        assert log[f"off_policy/xtok/dropped_{reason}"] > 0
