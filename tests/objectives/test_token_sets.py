"""The probability of a few tokens, against the softmax over all."""

import pytest
import torch

from tests.objectives.plain import TensorSizes
from trl_xtok.objectives import LMHead, probability_of_any, token_logps


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "scale": 0.3}], ids=["plain", "capped"])
@pytest.mark.parametrize("size", [0, 1, 5000])
def test_as_the_softmax_says(size, options, temperature):
    torch.manual_seed(0)
    hidden = torch.randn(7, 16)
    head = LMHead(torch.randn(6000, 16), torch.randn(6000), **options)
    tokens, targets = torch.randperm(6000)[:size], torch.randint(6000, (7,))
    known = token_logps(hidden, head, targets, temperature=temperature)
    raw = (hidden @ head.weight.T + head.bias) * head.scale
    logits = raw if head.softcap is None else head.softcap * (raw / head.softcap).tanh()
    expected = (logits / temperature).softmax(-1)[:, tokens].sum(-1)
    actual = probability_of_any(hidden, head, tokens, targets, known, temperature=temperature)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_fits_the_log_prob_beside_it(dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(70, 256).to(dtype), torch.randn(600, 256).to(dtype)
    tokens, targets = torch.arange(50), torch.randint(600, (70,))
    known = token_logps(hidden, weight, targets)
    # On a CPU logits are rounded once, as `token_logps` has them.
    expected = (hidden @ weight.T).float().softmax(-1)[:, tokens].sum(-1)
    actual = probability_of_any(hidden, LMHead(weight), tokens, targets, known)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_no_logits_but_those_of_the_set():
    rows, vocab, width = 50, 6000, 16
    hidden, weight = torch.randn(rows, width), torch.randn(vocab, width)
    with TensorSizes() as sizes:
        probability_of_any(hidden, LMHead(weight), torch.arange(20), torch.arange(rows), torch.full((rows,), -1.0))
    assert sizes.peak < 8 * rows * max(width, 20) < rows * vocab / 2
