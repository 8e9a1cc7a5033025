"""`segmentation="text"`: what it takes off the advantages, on rollouts that left the canonical path."""

import random

import pytest
import torch

from tests import real_tokenizers
from tests.training.fixed_rollouts import FixedTrainer, raw, scored_step, stop, text
from tests.training.reference import Reference
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok.training.advantages import credit_tokens
from trl_xtok.training.scoring import causal_lm


TEXTS = [
    " The quick brown foxes jumped over 12345 lazy dogs.",
    " def total(values):\n    return sum(values)  # 3.14159",
    " \u00dcber Stra\u00dfen und B\u00e4ume, na\u00efve caf\u00e9s.",
    " \u4f60\u597d\uff0c\u4e16\u754c! \u3053\u3093\u306b\u3061\u306f",
    " Emoji \U0001f44d\U0001f3fd and \U0001f469\u200d\U0001f680 mixed with words",
    "\n\n    indented\n\ttabs  and   runs of   spaces",
    " unbelievable internationalization misunderstandings",
    ' {"key": [1, 2, 3], "other": null}',
]


def resegmented(ids: list[int], share: float, seed: int) -> list[int]:
    """The same bytes in other tokens of the student: some tokens are cut into two that its vocabulary holds."""
    tokenizer = real_tokenizers.smollm2()
    vocabulary, draw = tokenizer.get_vocab(), random.Random(seed)
    result = []
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        halves = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if {piece[:i], piece[i:]} <= vocabulary.keys()]
        if halves and draw.random() < share:
            result += [vocabulary[half] for half in draw.choice(halves)]
        else:
            result.append(token)
    return result


def window(share: float, seed: int = 0) -> dict[str, list[int]]:
    """A completion per prompt; every other one was finished."""
    return {
        prompt: resegmented(text(content), share, seed + row) + (stop() if row % 2 else [])
        for row, (prompt, content) in enumerate(zip(PROMPTS, TEXTS, strict=True))
    }


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, padded_student_path, teacher_path):
    """Unclipped, so that the correction can be read off the advantages."""
    args = tiny_args(tmp_path_factory.mktemp("segmentation"), advantage_clip=None, segmentation="text")
    return tiny_trainer(padded_student_path, teacher_path, args, trainer_class=FixedTrainer)


def advantages(trainer, rollouts):
    """Micro-batch of the whole window and the advantages of its tokens."""
    trainer.rollouts = rollouts
    (batch,) = scored_step(trainer, list(rollouts), batch_size=len(rollouts))
    return batch, credit_tokens(trainer._student_scores(trainer.model, batch), batch, trainer.args).advantages


def correction(trainer, monkeypatch, rollouts):
    """What the text correction takes off each token's advantage."""
    batch, on_text = advantages(trainer, rollouts)
    monkeypatch.setattr(trainer.args, "segmentation", "path")
    _, on_path = advantages(trainer, rollouts)
    monkeypatch.setattr(trainer.args, "segmentation", "text")
    return batch, on_path - on_text


def reference_corrections(trainer, rollouts):
    reference, expected = Reference(trainer), []
    for prompt, ids in rollouts.items():
        expected += reference.corrections_of(prompt, ids)
    return torch.tensor(expected)


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("credit", ["proportional", "additive", "uniform", "chunk"])
def test_correction_equals_the_reference(trainer, monkeypatch, credit, share):
    monkeypatch.setattr(trainer.args, "credit", credit)
    rollouts = window(share)
    assert sum(not rollout.is_canonical for rollout in advantages(trainer, rollouts)[0].rollouts) >= 5
    _, actual = correction(trainer, monkeypatch, rollouts)
    expected = reference_corrections(trainer, rollouts)
    assert expected.count_nonzero() > 20
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_units_are_closed_under_chunks_and_regions(trainer):
    """No chunk and no region of either tokenization reaches over the end of a unit."""
    batch, _ = advantages(trainer, window(0.5))
    units = batch.canonical.units.tolist()
    chunks = iter(batch.chunks.tolist())
    merged = 0
    for rollout in batch.rollouts:
        row = [(units.pop(0), next(chunks)) for _ in rollout.completion_ids]
        regions = rollout.canonical.student_chunks
        for kind in ([chunk for _, chunk in row], regions):
            for number in set(kind) - {-1}:
                touched = {unit for (unit, _), other in zip(row, kind, strict=True) if other == number}
                assert len(touched) == 1
        for unit in {unit for unit, _ in row} - {-1}:
            inside = [(chunk, region) for (other, chunk), region in zip(row, regions, strict=True) if other == unit]
            assert all(chunk >= 0 and region >= 0 for chunk, region in inside)
            merged += len({chunk for chunk, _ in inside}) > 1 or len({region for _, region in inside}) > 1
    assert merged > 0, "some unit must be more than one chunk and one region"


@pytest.mark.parametrize("credit", ["proportional", "additive", "uniform"])
def test_advantages_of_a_unit_sum_to_the_gap_of_its_text(trainer, monkeypatch, credit):
    """`L_T - logaddexp(L_S(sampled), L_S(canonical))`, the teacher against two paths of the student."""
    monkeypatch.setattr(trainer.args, "credit", credit)
    batch, values = advantages(trainer, window(0.5))
    logps = trainer._student_logps(trainer.model, batch.packed).detach()
    paths = batch.canonical
    assert paths.differ.any()
    for unit in range(len(paths.differ)):
        inside = paths.units == unit
        if not inside.any():
            continue
        sampled = logps[inside].sum()
        student = torch.logaddexp(sampled, paths.logps[unit]) if paths.differ[unit] else sampled
        teacher = batch.teacher_logps[batch.chunks[inside].unique()].sum()
        torch.testing.assert_close(values[inside].sum(), teacher - student, atol=1e-3, rtol=1e-4)


def test_canonical_rollouts_cost_nothing_and_get_none(trainer, monkeypatch):
    rollouts = window(0.0)
    forwards = []
    hook = causal_lm(trainer.model).base_model.register_forward_pre_hook(lambda *args: forwards.append(1))
    batch, values = advantages(trainer, rollouts)
    hook.remove()
    assert batch.canonical is None
    assert len(forwards) == 1, "only the forward of this test"
    monkeypatch.setattr(trainer.args, "segmentation", "path")
    assert torch.equal(advantages(trainer, rollouts)[1], values)


def test_only_rollouts_that_left_the_path_are_corrected(trainer, monkeypatch):
    mixed = window(0.0) | dict(list(window(0.9).items())[:3])
    batch, actual = correction(trainer, monkeypatch, mixed)
    rows = actual.split([len(rollout.completion_ids) for rollout in batch.rollouts])
    for rollout, row in zip(batch.rollouts, rows, strict=True):
        assert bool(row.any()) != rollout.is_canonical


def test_unit_with_a_dropped_token_gets_none(trainer, monkeypatch):
    """The last chunk of an unfinished completion is dropped, and its unit with it; the unit before is corrected."""
    ids = raw(b" Hello") + text(" there") + raw(b" friend")
    batch, actual = correction(trainer, monkeypatch, {PROMPTS[0]: ids})
    assert batch.dropped == {"unfinished": 7}
    assert (actual[:6] > 0).all()
    assert not actual[6:].any()
