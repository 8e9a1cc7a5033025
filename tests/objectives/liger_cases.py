"""The Liger path against the plain formula, with the real Triton kernels in Triton's interpreter.

Not collected by default: the interpreter must be chosen before Triton is imported, so `test_liger_logps.py` runs this
file in a process of its own.
"""

import numpy as np
import pytest
import torch

from tests.objectives import plain
from tests.objectives.plain import TensorSizes, assert_same_with_gradients, plain_logps
from trl_xtok.objectives import LMHead, token_logps


VOCAB, HIDDEN = 37, 8


@pytest.fixture(autouse=True)
def interpreter_without_gaps(monkeypatch):
    """Triton's interpreter lacks two things that Liger's soft-cap uses: float arguments and libdevice's `tanh`."""
    import triton.language as tl
    from liger_kernel.ops import cross_entropy
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def convert_floats_too(argument):
        if isinstance(argument, float):
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return convert(argument)

    monkeypatch.setattr(interpreter, "_implicit_cvt", convert_floats_too)
    monkeypatch.setattr(cross_entropy, "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)


def operands(tokens, *, bias, trains, ignored=()):
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).requires_grad_(trains)
    bias = torch.randn(VOCAB, generator=generator).requires_grad_(trains) if bias else None
    targets = torch.randint(VOCAB, (tokens,), generator=generator)
    targets[list(ignored)] = -100
    upstream = torch.randn(tokens, generator=generator)
    return hidden, weight, bias, targets, upstream


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    ("softcap", "scale", "temperature"),
    [
        pytest.param(None, 1.0, 1.0, id="plain"),
        pytest.param(None, 0.3, 0.7, id="scale and temperature"),
        pytest.param(2.0, 1.0, 1.0, id="cap"),
        pytest.param(2.0, 0.3, 0.7, id="scale, then cap, then temperature"),
    ],
)
def test_values_and_gradients_are_those_of_the_formula(trains, bias, softcap, scale, temperature):
    # 13 tokens in blocks of 4: the last block is ragged. One token is ignored, upstream gradients differ.
    hidden, weight, bias, targets, upstream = operands(13, bias=bias, trains=trains, ignored=[5])
    head = LMHead(weight, bias, softcap, scale)
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]

    expected = plain_logps(hidden, head, targets, temperature)
    actual = token_logps(hidden, head, targets, temperature=temperature, block_size=4, backend="liger")

    assert_same_with_gradients(actual, expected, leaves, upstream)


@pytest.mark.parametrize("block_size", [1, 2, 3, 64])
@pytest.mark.parametrize("tokens", [1, 6, 33])
def test_no_block_of_logits_is_longer_than_asked_for(block_size, tokens, monkeypatch):
    from liger_kernel.ops import fused_linear_cross_entropy

    lengths = []
    kernel = fused_linear_cross_entropy.liger_cross_entropy_kernel

    class Recorder:
        def __getitem__(self, grid):
            lengths.append(grid[0])
            return kernel[grid]

    monkeypatch.setattr(fused_linear_cross_entropy, "liger_cross_entropy_kernel", Recorder())
    hidden, weight, _, targets, _ = operands(tokens, bias=False, trains=False)
    logps = token_logps(hidden, weight, targets, block_size=block_size, backend="liger")
    torch.testing.assert_close(logps, plain_logps(hidden, LMHead(weight), targets, 1.0), atol=1e-5, rtol=1e-5)
    assert sum(lengths) == tokens
    assert max(lengths) <= block_size
    if block_size < tokens:
        assert max(lengths) == 1 << (block_size.bit_length() - 1), "smaller blocks than allowed only cost time"


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("tokens", [0, 3], ids=["no tokens", "all tokens ignored"])
def test_nothing_to_score_stays_in_the_graph(tokens, trains):
    hidden, weight, _, targets, _ = operands(tokens, bias=False, trains=trains, ignored=range(tokens))
    logps = token_logps(hidden, weight, targets, backend="liger")
    assert logps.tolist() == [0] * tokens
    logps.sum().backward()
    assert not hidden.grad.any()
    assert not trains or not weight.grad.any()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_hidden_states_of_ignored_tokens_are_not_looked_at(trains):
    hidden, weight, _, targets, upstream = operands(5, bias=False, trains=trains, ignored=[1])
    hidden.data[1] = float("nan")
    logps = token_logps(hidden, weight, targets, backend="liger")
    logps.backward(upstream)
    assert logps[1] == 0
    assert hidden.grad.isfinite().all()
    assert not hidden.grad[1].any()
    assert not trains or weight.grad.isfinite().all()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_half_precision_stays_near_the_formula(trains):
    """Liger rounds every logit to bfloat16 (relative error 2**-9), which bounds what can be expected."""
    hidden, weight, _, targets, upstream = operands(13, bias=False, trains=trains)
    half_hidden, half_weight = hidden.detach().bfloat16(), weight.detach().bfloat16().requires_grad_(trains)
    hidden, weight = half_hidden.float().requires_grad_(), half_weight.detach().float().requires_grad_(trains)
    half_hidden.requires_grad_()
    expected, actual = (
        plain_logps(hidden, LMHead(weight), targets, 1.0),
        token_logps(half_hidden, half_weight, targets, backend="liger"),
    )
    largest_logit = (hidden @ weight.T).abs().max().item()
    assert actual.dtype == torch.float32
    print("bf16 error", (actual - expected).abs().max().item(), "largest logit", largest_logit)
    torch.testing.assert_close(actual, expected, atol=largest_logit * 2**-8, rtol=0)
    for half, full in zip(
        torch.autograd.grad(actual, [half_hidden, half_weight][: 1 + trains], upstream),
        torch.autograd.grad(expected, [hidden, weight][: 1 + trains], upstream),
        strict=True,
    ):
        assert half.dtype == torch.bfloat16
        print("grad error", ((half - full).norm() / full.norm()).item())
        assert (half - full).norm() <= 0.01 * full.norm()


def test_autocast_matmuls_in_half_precision_and_returns_float32_gradients():
    hidden, weight, bias, targets, upstream = operands(13, bias=True, trains=True)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(hidden, LMHead(weight, bias), targets, backend="liger")
    assert logps.dtype == torch.float32
    expected = plain_logps(hidden, LMHead(weight, bias), targets, 1.0)
    assert 0 < (logps - expected).abs().max() < 0.1
    for actual, wanted in zip(
        torch.autograd.grad(logps, [hidden, weight, bias], upstream),
        torch.autograd.grad(expected, [hidden, weight, bias], upstream),
        strict=True,
    ):
        assert actual.dtype == torch.float32
        assert (actual - wanted).norm() <= 0.02 * wanted.norm()


def test_no_gradient_is_kept_where_none_is_needed():
    hidden, weight, _, targets, _ = operands(5, bias=False, trains=True)
    with torch.no_grad():
        logps = token_logps(hidden, weight, targets, backend="liger")
    assert not logps.requires_grad


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_logits_of_a_block_and_a_gradient_of_a_head_that_trains(trains):
    tokens, vocab, width, block_size = 64, 500, 8, 4
    hidden, weight, _, targets, upstream = plain.operands(tokens, vocab, width, trains=trains)
    with TensorSizes() as sizes:
        token_logps(hidden, weight, targets, block_size=block_size, backend="liger").backward(upstream)
    # Liger computes a block's gradient in the place of its logits; beside it there are a few numbers per token.
    allowed = 3 * block_size * vocab + 4 * tokens * width
    assert block_size * vocab <= sizes.peak < allowed + (3 * vocab * width if trains else 0) < tokens * vocab


def test_a_frozen_head_has_no_gradient_buffer():
    tokens, vocab, width = 4, 500, 64
    hidden, weight, _, targets, upstream = plain.operands(tokens, vocab, width, trains=False)
    with TensorSizes() as sizes:
        token_logps(hidden, weight, targets, block_size=1, backend="liger").backward(upstream)
    assert sizes.peak < vocab * width / 2
