"""Liger's JSD against the plain formula, in Triton's interpreter; run by `test_liger_logps.py`."""

import pytest
import torch

from tests.objectives.plain import TensorSizes, assert_same_with_gradients, operands, plain_logits
from trl_xtok.errors import ConfigError
from trl_xtok.objectives import EventMap, LMHead, generalized_jsd, liger_jsd, use_liger_jsd, vocab_jsd


# The interpreter computes in numpy, which warns of the lanes beyond the vocabulary; a GPU masks them.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

WHOLE = EventMap()


def pair(trains, dtype=torch.float32, tokens=13):
    hidden, weight, *_ = operands(tokens, trains=trains)
    teacher_hidden, teacher_weight, *_ = operands(tokens, hidden=6, trains=False, seed=1)
    hidden, weight = hidden.detach().to(dtype).requires_grad_(), weight.detach().to(dtype).requires_grad_(trains)
    return hidden, LMHead(weight), teacher_hidden.detach().to(dtype), LMHead(teacher_weight.to(dtype))


def plain(hidden, head, teacher_hidden, teacher_head, beta, temperature):
    sides = (hidden, head), (teacher_hidden, teacher_head)
    student, teacher = (plain_logits(*side, temperature).log_softmax(-1) for side in sides)
    return generalized_jsd(student, teacher, beta).sum()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("block_size", [1, 4, None], ids=["one row", "ragged", "default"])
@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 0.7), (1.0, 2.0)])
def test_sum_and_gradients_are_those_of_the_formula(beta, temperature, block_size, trains):
    sides = pair(trains)
    leaves = [sides[0], sides[1].weight] if trains else [sides[0]]
    assert use_liger_jsd("liger", sides[0], (sides[1], WHOLE), (sides[3], WHOLE))
    expected = plain(*sides, beta, temperature)
    actual = liger_jsd(*sides, beta=beta, temperature=temperature, block_size=block_size)
    assert_same_with_gradients(actual, expected, leaves, torch.tensor(0.7))


def test_a_frozen_head_gets_no_gradient():
    sides = pair(trains=False)
    liger_jsd(*sides, beta=0.5, temperature=1.0).backward()
    assert sides[0].grad.any()
    assert sides[1].weight.grad is None
    with torch.no_grad():
        assert not liger_jsd(*pair(trains=True), beta=0.5, temperature=1.0).requires_grad


def peak(tokens, vocab, width, block_size, *, trains):
    hidden, weight, *_ = operands(tokens, vocab, width, trains=trains)
    teacher_hidden, teacher_weight, *_ = operands(tokens, vocab, width, trains=False, seed=1)
    sides = hidden, LMHead(weight), teacher_hidden.detach(), LMHead(teacher_weight)
    with TensorSizes() as sizes:
        liger_jsd(*sides, beta=0.5, temperature=1.0, block_size=block_size).backward()
    return sizes.peak


# With a head that trains Liger gets all tokens at once, so that it holds one gradient, and chooses longer blocks.
@pytest.mark.parametrize(("trains", "rows"), [(False, 4), (True, 16)], ids=["frozen head", "trainable head"])
def test_logits_of_a_block_and_a_gradient_of_a_head_that_trains(trains, rows):
    tokens, vocab, width = 512, 500, 8
    others = 3 * tokens * width + (3 * vocab * width if trains else 0)
    found = peak(tokens, vocab, width, 4, trains=trains)
    assert rows * vocab < found <= others + 16 * rows * vocab < tokens * vocab


def test_a_frozen_head_has_no_gradient_buffer():
    assert peak(4, 500, 256, 1, trains=False) < 500 * 256 / 2


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_half_precision_stays_near_the_formula(beta, trains, capsys):
    """Both round every logit to bfloat16 on a CPU; on CUDA, Liger 0.8.5 asks the matmul for float32."""
    half, full = pair(trains, torch.bfloat16), None
    full = tuple(
        LMHead(side.weight.detach().float().requires_grad_(side.weight.requires_grad))
        if isinstance(side, LMHead)
        else side.detach().float().requires_grad_(side.requires_grad)
        for side in half
    )
    wanted = torch.autograd.grad(plain(*full, beta, 1.0), [full[0], full[1].weight][: 1 + trains])
    results = {
        "liger": liger_jsd(*half, beta=beta, temperature=1.0),
        "torch": vocab_jsd(*half, student_events=WHOLE, teacher_events=WHOLE, beta=beta).divergences.sum(),
    }
    for name, result in results.items():
        found = torch.autograd.grad(result, [half[0], half[1].weight][: 1 + trains])
        errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
        with capsys.disabled():
            print(f"\nbf16, beta {beta}, {name}: gradients of hidden states and head within", errors)
        assert max(errors) < 0.02


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bias": torch.zeros(37)}, "no bias, soft-cap or scale"),
        ({"softcap": 5.0}, "no bias, soft-cap or scale"),
        ({"scale": 0.5}, "no bias, soft-cap or scale"),
    ],
)
def test_what_liger_cannot_do_is_refused_or_left_to_torch(change, reason):
    hidden, head, _, teacher_head = pair(trains=False)
    for sides in ((LMHead(head.weight, **change), teacher_head), (head, LMHead(teacher_head.weight, **change))):
        student, teacher = ((side, WHOLE) for side in sides)
        with pytest.raises(ConfigError, match=reason):
            use_liger_jsd("liger", hidden, student, teacher)
        assert not use_liger_jsd("auto", hidden, student, teacher)
    some = EventMap(columns=torch.arange(30))
    with pytest.raises(ConfigError, match="whole vocabularies"):
        use_liger_jsd("liger", hidden, (head, some), (teacher_head, some))
    with pytest.raises(ConfigError, match="float16"):
        use_liger_jsd("liger", hidden.half(), (head, WHOLE), (teacher_head, WHOLE))
    assert not use_liger_jsd("torch", hidden, (head, WHOLE), (teacher_head, WHOLE))
