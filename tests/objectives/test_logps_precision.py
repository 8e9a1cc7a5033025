"""`token_logps` in half precision, under autocast and near its limits."""

import pytest
import torch

from tests.objectives.plain import operands, plain_logps
from trl_xtok.objectives import LMHead, token_logps


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=["bfloat16", "float16"]
)
def test_half_precision_is_as_near_as_its_logits(dtype, tolerance, trains):
    """A logit is rounded once to half precision on a CPU, and softmax adds nothing to that."""
    hidden, weight, _, targets, upstream = operands(64, 500, 32, trains=False)
    hidden, weight = hidden.detach().to(dtype), (weight / 3).to(dtype)
    halves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_(trains)]
    floats = [half.detach().float().requires_grad_(half.requires_grad) for half in halves]
    actual, expected = token_logps(*halves, targets), plain_logps(floats[0], LMHead(floats[1]), targets)
    assert actual.dtype == torch.float32
    largest_logit = (floats[0] @ floats[1].T).abs().max().item()
    torch.testing.assert_close(actual, expected, atol=tolerance * largest_logit, rtol=0)

    for half, full in zip(
        torch.autograd.grad(actual, halves[: 1 + trains], upstream),
        torch.autograd.grad(expected, floats[: 1 + trains], upstream),
        strict=True,
    ):
        assert half.dtype == dtype
        assert (half - full).norm() <= 2 * tolerance * full.norm()


def test_a_confident_token_keeps_its_gradient_in_half_precision():
    # p = 1 - 2e-4 rounds to 1 in bfloat16; its distance to 1 is what the gradient is made of.
    hidden = torch.tensor([[8.5, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    token_logps(hidden, weight, torch.tensor([0])).sum().backward()
    rest = torch.tensor(-8.5).sigmoid()
    torch.testing.assert_close(hidden.grad.float(), torch.stack([rest, -rest])[None], atol=0, rtol=2**-8)


def test_log_probs_next_to_zero_are_not_rounded_to_zero():
    logps = token_logps(torch.tensor([[30.0]]), torch.tensor([[1.0], [0.0]]), torch.tensor([0]))
    torch.testing.assert_close(logps, -torch.tensor([30.0]).neg().exp(), atol=0, rtol=1e-6)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_matmul_dtype_is_that_of_the_hidden_states(weight_dtype):
    hidden, weight, _, targets, upstream = operands(trains=False)
    weight = weight.to(weight_dtype).requires_grad_()
    actual = token_logps(hidden, weight, targets)
    expected = plain_logps(hidden, LMHead(weight.float()), targets)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(actual, weight, upstream)
    assert gradient.dtype == weight_dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_matmuls_in_half_precision_and_returns_float32(dtype):
    hidden, weight, bias, targets, upstream = operands(64, 500, 32)
    head = LMHead(weight, bias)
    with torch.autocast("cpu", dtype):
        actual = token_logps(hidden, head, targets)
        inside = torch.autograd.grad(actual, [hidden, weight, bias], upstream, retain_graph=True)
    half = token_logps(hidden.to(dtype), LMHead(weight.to(dtype), bias), targets)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, half, atol=1e-6, rtol=1e-6)
    outside = torch.autograd.grad(actual, [hidden, weight, bias], upstream)
    torch.testing.assert_close(inside, outside, atol=0, rtol=0)
    assert [gradient.dtype for gradient in outside] == [torch.float32] * 3
    expected = torch.autograd.grad(plain_logps(hidden, head, targets), [hidden, weight, bias], upstream)
    for half_gradient, full in zip(outside, expected, strict=True):
        assert 0 < (half_gradient - full).norm() <= 0.02 * full.norm()


def test_autocast_around_the_backward_alone_changes_nothing():
    hidden, weight, _, targets, upstream = operands()
    logps = token_logps(hidden.bfloat16(), weight.bfloat16(), targets)
    expected = torch.autograd.grad(logps, [hidden, weight], upstream, retain_graph=True)
    with torch.autocast("cpu", torch.float16):
        actual = torch.autograd.grad(logps, [hidden, weight], upstream)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_autocast_leaves_float64_alone():
    hidden, weight, _, targets, _ = operands(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(hidden, weight, targets)
    torch.testing.assert_close(logps, plain_logps(hidden, LMHead(weight), targets))


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_logits_that_are_all_large_lose_no_digits(trains):
    hidden, weight, _, targets, upstream = operands(trains=False)

    def result(offset):
        # Multiples of 1/64 stay exact beside the offset.
        states, head = ((each.detach() * 8).round() / 8 for each in (hidden, weight))
        inputs = [each.requires_grad_() for each in ([states, head] if trains else [states])]
        logps = token_logps(states, LMHead(head, torch.full((len(head),), offset)), targets)
        return logps, *torch.autograd.grad(logps, inputs, upstream)

    torch.testing.assert_close(result(4096.0), result(0.0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_a_token_that_is_almost_certain_keeps_the_digits_of_its_gradient(trains):
    # p = 1 - 1e-6; what is left of it in p - 1 has one digit in float32.
    _, weight, _, targets, upstream = operands(trains=False)
    targets, head = torch.zeros_like(targets), weight / 10
    head[0] = torch.tensor([1.2, *[0.0] * 7])
    sure = torch.tensor([14.0, *[0.0] * 7]).expand(len(targets), -1)

    def gradients(dtype):
        inputs = [sure.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(trains)]
        logps = token_logps(*inputs, targets)
        return torch.autograd.grad(logps, inputs[: 1 + trains], upstream.to(dtype))

    for actual, exact in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert (actual - exact).norm() < 1e-5 * exact.norm()


def test_a_loss_scaler_finds_the_gradient_of_a_sure_token_in_float16():
    """p = 1 - 2e-7: the derivative is below what float16 holds, and the scaled gradient is not."""
    states, weight = torch.zeros(1, 8, dtype=torch.float16), torch.zeros(500, 8, dtype=torch.float16)
    states[0, 0], weight[0, 0] = 4.0, 5.5
    states.requires_grad_()
    token_logps(states, weight, torch.tensor([0])).backward(torch.tensor([2.0**16]))
    exact = states.detach().double().requires_grad_()
    token_logps(exact, weight.double(), torch.tensor([0])).backward(torch.tensor([2.0**16], dtype=torch.float64))
    torch.testing.assert_close(states.grad.double(), exact.grad, atol=0, rtol=2**-9)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("tokens", "vocab"), [(100, 4000), (600, 40)], ids=["along the vocabulary", "along tokens"])
def test_many_tiles_add_up_in_float32(tokens, vocab, dtype, trains):
    """As near as few tiles: nothing is rounded to half precision between them."""
    states, weight, _, targets, upstream = operands(tokens, vocab, 16, trains=False)
    states, weight = states.detach().to(dtype), (weight / 4).to(dtype)

    def gradients(block_size):
        inputs = [states.clone().requires_grad_(), weight.clone().requires_grad_(trains)]
        logps = token_logps(*inputs, targets, block_size=block_size)
        return torch.autograd.grad(logps, inputs[: 1 + trains], upstream)

    for many, few in zip(gradients(2), gradients(tokens), strict=True):
        error = (many.float() - few.float()).norm() / few.float().norm() / torch.finfo(dtype).eps
        # A frozen head rounds probabilities relative to the largest so far, and the other one as they are.
        assert error < (0.5 if trains else 0.25)
