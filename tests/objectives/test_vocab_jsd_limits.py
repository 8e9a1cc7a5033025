"""`vocab_jsd` with many tokens: what half precision can hold, and how much memory the default takes."""

import pytest
import torch

from tests.objectives.plain import TensorSizes, operands
from trl_xtok.objectives import EventMap, LMHead, vocab_jsd


def gradients(states, weight, teacher_states, upstream, *, trains, **options):
    inputs = [states.requires_grad_(), weight.requires_grad_(trains)][: 1 + trains]
    result = vocab_jsd(states, LMHead(weight), teacher_states, LMHead(weight.detach()), **options)
    return torch.autograd.grad(result.divergences, inputs, upstream)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_pulls_below_what_float16_holds_are_not_lost(beta, trains):
    """Near the end of a training each of many tokens pulls by less than 6e-8; a scaler makes the loss large."""
    states, weight, *_ = operands(6, 20_000, 16, trains=False)
    states, weight = states.detach().half(), (weight / 8).half()
    teacher_states = (states.float() * 1.01).half()
    upstream = torch.full((6,), 2.0**12)
    options = {"student_events": EventMap(), "teacher_events": EventMap(), "beta": beta, "trains": trains}
    halves = gradients(states.clone(), weight.clone(), teacher_states, upstream, **options)
    floats = [each.float() for each in (states, weight, teacher_states)]
    for half, full in zip(halves, gradients(*floats, upstream, **options), strict=True):
        error = float((half.float() - full).norm() / full.norm())
        assert error < 0.05


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_many_blocks_add_up_in_float32(trains):
    """As near as one block: nothing is rounded to half precision between them."""
    states, weight, _, _, upstream = operands(200, 400, 16, trains=False)
    teacher_states, *_ = operands(200, 400, 16, trains=False, seed=1)
    halves = states.detach().bfloat16(), (weight / 4).bfloat16(), teacher_states.detach().bfloat16()
    options = {"student_events": EventMap(), "teacher_events": EventMap(), "trains": trains}
    many, few = (
        gradients(*(each.clone() for each in halves), upstream, block_size=size, **options) for size in (4, 5000)
    )
    for one, other in zip(many, few, strict=True):
        assert (one.float() - other.float()).norm() < torch.finfo(torch.bfloat16).eps / 2 * other.float().norm()


def test_the_default_keeps_what_is_alive_under_fifty_mebibytes():
    states, weight, *_ = operands(100, 128_256, 4, trains=False)
    options = {"student_events": EventMap(), "teacher_events": EventMap(), "beta": 1.0}
    with TensorSizes() as sizes, torch.no_grad():
        vocab_jsd(states, LMHead(weight), states, LMHead(weight), **options)
    assert 35 * 2**20 < 4 * sizes.peak < 50.5 * 2**20
