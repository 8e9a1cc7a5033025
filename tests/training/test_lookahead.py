"""Chunks joined over cuts that the student would have undone: against the slow reference, metrics and refusals."""

from dataclasses import replace

import pytest
import torch

from tests.training.fixed_rollouts import FixedTrainer, loss_and_gradients, raw, rollouts, scored_step, stop, text
from tests.training.reference import Reference
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from tests.training.vocab_reference import VocabReference
from trl_xtok.errors import ConfigError
from trl_xtok.training.objective import student_scores


# Between the probabilities that random models of 49,216 tokens have.
LIMIT = 3e-5


class JoiningAligner:
    """The trainer's aligner, joining as the book says: from the whole softmax, one cut at a time."""

    def __init__(self, trainer, reference):
        self._trainer, self._reference, self._plain = trainer, reference, trainer.aligner
        self._prompts = {tuple(ids): prompt for prompt, ids in trainer.rollouts.items()}
        self.cuts, self.joined = 0, 0
        self._known = {}

    def __getattr__(self, name):
        return getattr(self._plain, name)

    def align(self, ids):
        """Chunk numbers skip those that were joined to the one before."""
        if tuple(ids) not in self._known:
            self._known[tuple(ids)] = self._align(ids)
        return self._known[tuple(ids)]

    def _align(self, ids):
        plain = self._plain.align(ids)
        if tuple(ids) not in self._prompts or not ids:
            return plain
        prompt_ids, _ = self._reference.tokenize(self._prompts[tuple(ids)])
        logits = self._reference.student(torch.tensor([[*prompt_ids, *ids]]), use_cache=False).logits[0].double()
        probabilities = (logits[len(prompt_ids) - 1 :] / self._trainer.args.temperature).softmax(-1)
        last = plain.num_chunks - (ids[-1] not in self._plain.student_stop_ids)
        number = {-1: -1}
        for chunk in range(plain.num_chunks):
            number[chunk] = number[chunk - 1] if self._joins(plain, chunk, last, probabilities) else chunk
        # Empty numbers are no chunks for the reference.
        used = {old: new for new, old in enumerate(sorted(set(number.values()) - {-1}))} | {-1: -1}
        return replace(
            plain,
            student_chunks=[used[number[chunk]] for chunk in plain.student_chunks],
            teacher_chunks=[used[number[chunk]] for chunk in plain.teacher_chunks],
            num_chunks=len(used) - 1,
        )

    def _joins(self, plain, chunk, last, probabilities):
        if not 0 < chunk < last:
            return False
        place = plain.student_chunks.index(chunk)
        if place == 0 or plain.student_chunks[place - 1] != chunk - 1:
            return False
        before = max(i for i, other in enumerate(plain.teacher_chunks) if other == chunk - 1)
        if plain.teacher_chunks[before + 1] != chunk:
            return False
        undoing = self._plain.undoing(plain.teacher_ids[before])
        joins = bool(probabilities[place, undoing].sum() > LIMIT)
        self.cuts, self.joined = self.cuts + bool(undoing), self.joined + joins
        return joins


@pytest.fixture
def build(tmp_path, padded_student_path, teacher_path):
    def build_trainer(objective, teacher=teacher_path, **changes):
        args = tiny_args(tmp_path, objective=objective, **{"max_lookahead": LIMIT} | changes)
        trainer = tiny_trainer(padded_student_path, teacher, args, trainer_class=FixedTrainer)
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


@pytest.mark.parametrize(
    ("objective", "batch_size", "options"),
    [
        ("chunk_rkl", 1, {"credit": "additive", "advantage_baseline": "mean", "temperature": 0.8}),
        ("chunk_rkl", 3, {"advantage_baseline": "position"}),
        ("chunk_jsd", 3, {"beta": 0.4}),
        ("hybrid", 8, {}),
        ("prefix_jsd", 3, {"advantage_baseline": "mean"}),
    ],
)
def test_loss_and_gradients_equal_the_reference(build, objective, batch_size, options):
    trainer = build(objective, **options)
    actual, gradients = loss_and_gradients(trainer, PROMPTS, batch_size)
    reference = Reference(trainer)
    reference.aligner = joining = JoiningAligner(trainer, reference)
    if objective == "chunk_rkl" and trainer.args.advantage_baseline != "position":
        expected = reference.loss(trainer.rollouts)
    elif objective == "chunk_jsd":
        expected = reference.chunk_jsd(trainer.rollouts)
    else:
        expected = VocabReference(reference, objective).loss(trainer.rollouts)
    # Both kinds of cuts stand in the rollouts.
    assert 2 < joining.joined < joining.cuts - 2
    expected.backward()
    torch.testing.assert_close(actual, expected.detach().float(), atol=1e-5, rtol=1e-5)
    for name, gradient in reference.gradients().items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(gradients[name], gradient.float(), atol=1e-5 * largest, rtol=1e-4)


def test_no_cut_where_dropped_text_stands_between(build, byteless_teacher_path):
    """The student then goes on from what was dropped, which the teacher has not read."""
    trainer = build("chunk_rkl", teacher=byteless_teacher_path)
    # The teacher spells " then" as " the" and "n", and has tokens that begin with "n".
    trainer.rollouts = {PROMPTS[0]: text(" then") + raw(b"\xc3") + text(", a") + stop()}
    (batch,) = scored_step(trainer, PROMPTS[:1], 1)
    assert batch.chunks.tolist() == [0, -1, 1, 2, 3]
    assert trainer.aligner.undoing(batch.rollouts[0].alignment.teacher_ids[1])
    assert 2 not in [int(token) for cuts in batch.cuts for token in cuts.tokens]


def test_a_tokenizer_may_have_more_tokens_than_its_model(build):
    trainer = build("chunk_rkl")
    (batch,) = scored_step(trainer, PROMPTS, len(PROMPTS))
    expected = student_scores(trainer.model, batch, trainer.objective, trainer.args).joins
    assert expected.any()
    rows = len(trainer.model.get_output_embeddings().weight)
    batch.cuts = [cuts._replace(undoing=torch.cat([cuts.undoing, torch.tensor([rows])])) for cuts in batch.cuts]
    assert student_scores(trainer.model, batch, trainer.objective, trainer.args).joins.equal(expected)


def test_the_share_of_joined_cuts_is_logged(build):
    trainer = build("chunk_rkl", max_steps=1)
    trainer.rollouts = None
    trainer.train()
    assert 0 <= trainer.state.log_history[0]["xtok/joined_ratio"] <= 1
    assert "eval_xtok/joined_ratio" in trainer.evaluate(prompt_dataset())


@pytest.mark.parametrize(
    ("objective", "changes", "limit"),
    [
        ("prefix_jsd", {}, 0.1),
        ("prefix_jsd", {"max_lookahead": 0.3}, 0.3),
        ("prefix_jsd", {"max_lookahead": 1.0, "max_chunk_tokens": 3}, 1.0),
        ("prefix_jsd", {"max_chunk_tokens": 3}, 1.0),
        ("prefix_jsd", {"drop_whitespace": True}, 1.0),
        ("hybrid", {}, 1.0),
        ("chunk_rkl", {}, 1.0),
        ("chunk_rkl", {"advantage_baseline": "mean"}, 1.0),
        ("chunk_rkl", {"advantage_baseline": "position"}, 0.1),
        ("chunk_rkl", {"advantage_baseline": "position", "max_lookahead": 1.0}, 1.0),
        ("chunk_rkl", {"advantage_baseline": "position", "segmentation": "text"}, 1.0),
    ],
)
def test_what_compares_distributions_at_every_chunk_joins_by_itself(build, objective, changes, limit):
    trainer = build(objective, **{"max_lookahead": None} | changes)
    assert trainer.objective.max_lookahead == limit
    (batch,) = scored_step(trainer, PROMPTS, len(PROMPTS))
    assert bool(batch.cuts) == (limit < 1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"max_lookahead": 1.1}, r"`max_lookahead` is a probability, got 1.1. 1.0 joins nothing"),
        ({"max_lookahead": -0.1}, "is a probability, got -0.1"),
        ({"max_lookahead": "x"}, "`max_lookahead` must be a number, got 'x'"),
        ({"max_lookahead": 0.1, "one_to_one_only": True}, "joins chunks, and `one_to_one_only=True` is about"),
        ({"max_lookahead": 0.1, "max_chunk_tokens": 3}, "joins chunks, and `max_chunk_tokens=3` is about"),
        ({"max_lookahead": 0.1, "drop_whitespace": True}, "joins chunks, and `drop_whitespace=True` is about"),
        ({"max_lookahead": 0.1, "segmentation": "text"}, "joins chunks, and `segmentation='text'` is about"),
        ({"max_lookahead": 0.1, "objective": "exact_jsd"}, "has no effect on `objective='exact_jsd'`"),
        ({"max_lookahead": 0.1, "objective": "shared_vocab_jsd"}, "has no effect on `objective='shared_vocab_jsd'`"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        tiny_args(tmp_path, **changes)
