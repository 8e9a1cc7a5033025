"""What a run logs against numbers computed by hand from its rollouts."""

import pytest
import torch
from datasets import Dataset

from tests.training.fixed_rollouts import FixedTrainer, rollouts, stop, text
from tests.training.reference import Reference, token_logps
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer


# Every token is scored, and the number of bytes is the number of characters.
PLAIN = [" One two three.", " x = [1, 2, 3]", " A much longer answer with 12345 in it!", " yes"]


@pytest.fixture
def logged(tmp_path, padded_student_path, byteless_teacher_path):
    """Train without moving the weights; returns the first log, and the slow reference for the same models."""

    def train(completions, teacher=byteless_teacher_path, **changes):
        args = tiny_args(tmp_path, learning_rate=0.0, **changes)
        trainer = tiny_trainer(padded_student_path, teacher, args, trainer_class=FixedTrainer)
        trainer.rollouts = completions
        reference = Reference(trainer)
        trainer.train()
        return trainer.state.log_history[0], reference

    return train


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"per_device_train_batch_size": 8}, id="one batch"),
        pytest.param({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, id="accumulated"),
        pytest.param({"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 4}, id="over four steps"),
    ],
)
def test_reverse_kl_is_log_ratio_over_bytes(logged, teacher_path, changes):
    texts = dict(zip(PROMPTS, PLAIN + PLAIN, strict=True))
    completions = {prompt: text(content) + stop() for prompt, content in texts.items()}
    log, reference = logged(completions, teacher_path, **changes)
    log_ratio, end_log_ratio, surprise = 0.0, 0.0, 0.0
    with torch.no_grad():
        for prompt in texts:
            student_prompt, teacher_prompt = reference.tokenize(prompt)
            teacher_ids = reference.aligner.align(completions[prompt]).teacher_ids
            student = token_logps(reference.student, student_prompt, completions[prompt])
            teacher = token_logps(reference.teacher, teacher_prompt, teacher_ids)
            surprise -= float(student.sum())
            log_ratio += float(student[:-1].sum() - teacher[:-1].sum())
            end_log_ratio += float(student[-1] - teacher[-1])
    assert log["xtok/reverse_kl_per_byte"] == pytest.approx(log_ratio / sum(map(len, texts.values())), rel=1e-4)
    assert log["xtok/reverse_kl_end"] == pytest.approx(end_log_ratio / len(texts), rel=1e-4)
    assert log["entropy"] == pytest.approx(surprise / sum(map(len, completions.values())), rel=1e-4)
    assert log["xtok/coverage"] == log["xtok/stop_rate"] == 1


@pytest.mark.parametrize("charge", ["mean", 0.0])
def test_every_sampled_token_is_covered_or_dropped_for_one_reason(logged, charge):
    """Charged tokens are trained on, but not covered: they have no score."""
    log, reference = logged(rollouts(), per_device_train_batch_size=8, dropped_advantage=charge)
    dropped = {name: share for name, share in log.items() if name.startswith("xtok/dropped_")}
    assert log["xtok/coverage"] + sum(dropped.values()) == pytest.approx(1)
    sampled = sum(map(len, rollouts().values()))
    alignments = [reference.aligner.align(ids) for ids in rollouts().values()]
    for reason in ("invalid_utf8", "unknown_id", "cut_character", "unspellable"):
        count = sum(alignment.dropped.get(reason, 0) for alignment in alignments)
        assert count > 0
        assert dropped[f"xtok/dropped_{reason}"] == pytest.approx(count / sampled)


def test_clipped_advantages_are_a_share_of_the_scored_tokens(logged):
    log, reference = logged(rollouts(), per_device_train_batch_size=8, advantage_clip=3.0)
    reference.args.advantage_clip = None
    values = [a for prompt, ids in rollouts().items() for a in reference.advantages_of(prompt, ids) if a is not None]
    expected = sum(abs(value) > 3.0 for value in values) / len(values)
    assert 0 < expected < 1
    assert log["xtok/clipped_advantages"] == pytest.approx(expected)


def test_noncanonical_and_stopped_rollouts_are_counted(logged):
    log, _ = logged(rollouts(), per_device_train_batch_size=8)
    assert log["xtok/noncanonical_ratio"] == 2 / 8
    assert log["xtok/stop_rate"] == 5 / 8
    assert log["completions/min_length"] == 0
    assert log["num_tokens"] > sum(map(len, rollouts().values()))


@pytest.mark.parametrize("objective", ["hybrid", "prefix_jsd"])
def test_the_loss_in_its_two_parts(logged, teacher_path, objective):
    options = {"objective": objective, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    log, _ = logged(rollouts(), teacher_path, chunk_weight=0.5, **options)
    twice, _ = logged(rollouts(), teacher_path, chunk_weight=1.0, **options)
    for each in (log, twice):
        assert each["matched_loss"] + each["unmatched_loss"] == pytest.approx(each["loss"], abs=1e-4)
    assert log["matched_loss"] == pytest.approx(twice["matched_loss"], abs=1e-4)
    assert abs(log["unmatched_loss"]) > 1e-3
    assert 2 * log["unmatched_loss"] == pytest.approx(twice["unmatched_loss"], abs=1e-4)


def test_a_loss_without_credit_is_the_divergence(logged, teacher_path):
    options = {"objective": "prefix_jsd", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    log, _ = logged(rollouts(), teacher_path, **options)
    without, _ = logged(rollouts(), teacher_path, chunk_weight=0.0, **options)
    assert without["unmatched_loss"] == 0
    assert without["matched_loss"] == without["loss"] == pytest.approx(log["matched_loss"], abs=1e-4)


def test_the_losses_of_both_kinds_of_steps_are_told_apart(tmp_path, padded_student_path, teacher_path):
    dataset = Dataset.from_dict({"prompt": PROMPTS, "completion": [f"{answer} and more" for answer in PLAIN * 2]})
    runs = {"mixed": {"lmbda": 0.5, "logging_steps": 6}, "apart": {"lmbda": 0.5, "logging_steps": 1}}
    logs = {}
    for name, changes in runs.items():
        options = {"objective": "chunk_jsd", "max_steps": 6, "gradient_accumulation_steps": 2, "seed": 3}
        trainer = tiny_trainer(
            padded_student_path, teacher_path, tiny_args(tmp_path, **options, **changes), train_dataset=dataset
        )
        trainer.train()
        logs[name] = [entry for entry in trainer.state.log_history if "loss" in entry]
    (mixed,), apart = logs["mixed"], logs["apart"]
    for kind in ("on_policy_loss", "off_policy_loss"):
        losses = [entry["loss"] for entry in apart if kind in entry]
        assert 0 < len(losses) < 6
        assert losses == pytest.approx([entry[kind] for entry in apart if kind in entry])
        assert mixed[kind] == pytest.approx(sum(losses) / len(losses))
