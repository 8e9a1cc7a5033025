import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.objectives.plain import TensorSizes, assert_same_with_gradients, operands, plain_logps
from trl_xtok.errors import ConfigError, ModelError
from trl_xtok.objectives import LMHead, default_block_size, token_logps


RULES = [
    pytest.param(None, 1.0, 1.0, id="plain"),
    pytest.param(None, 0.3, 0.7, id="scale and temperature"),
    pytest.param(None, -2.0, 1.0, id="negative scale"),
    pytest.param(2.0, 1.0, 1.0, id="cap"),
    pytest.param(2.0, 0.3, 0.7, id="scale, then cap, then temperature"),
]


@pytest.mark.parametrize("block_size", [1, 3, 64, None], ids=["one token", "ragged", "all tokens", "default"])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(("softcap", "scale", "temperature"), RULES)
def test_blocks_change_neither_value_nor_gradient(softcap, scale, temperature, with_bias, trains, block_size):
    hidden, weight, bias, targets, upstream = operands(trains=trains)
    targets[5] = -100
    head = LMHead(weight, bias if with_bias else None, softcap, scale)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None and leaf.requires_grad]

    expected = plain_logps(hidden, head, targets, temperature)
    actual = token_logps(hidden, head, targets, temperature=temperature, block_size=block_size)

    assert_same_with_gradients(actual, expected, leaves, upstream)


@pytest.mark.parametrize(("softcap", "scale", "temperature"), RULES)
def test_gradients_equal_finite_differences(softcap, scale, temperature):
    hidden, weight, bias, targets, _ = operands(5, 7, 3, dtype=torch.float64)

    def trainable(hidden, weight, bias):
        return token_logps(
            hidden, LMHead(weight, bias, softcap, scale), targets, temperature=temperature, block_size=1
        )

    def frozen(hidden):
        return trainable(hidden, weight.detach(), bias.detach())

    assert torch.autograd.gradcheck(trainable, (hidden, weight, bias))
    assert torch.autograd.gradcheck(frozen, (hidden,))


@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(1, 300),
    block_size=st.integers(1, 50),
    softcap=st.none() | st.floats(0.5, 50),
    seed=st.integers(0, 99),
)
def test_any_shape_gives_the_plain_values(tokens, vocab, block_size, softcap, seed):
    hidden, weight, bias, targets, upstream = operands(tokens, vocab, 4, seed=seed, trains=False)
    head = LMHead(weight, bias, softcap)
    expected, actual = plain_logps(hidden, head, targets), token_logps(hidden, head, targets, block_size=block_size)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    (expected_gradient,) = torch.autograd.grad(expected, hidden, upstream)
    torch.testing.assert_close(
        torch.autograd.grad(actual, hidden, upstream)[0], expected_gradient, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_no_more_logits_than_a_block_are_ever_alive(trains, softcap):
    tokens, vocab, width, block_size = 64, 1000, 4, 8
    hidden, weight, _, targets, upstream = operands(tokens, vocab, width, trains=trains)
    with TensorSizes() as forward:
        logps = token_logps(hidden, LMHead(weight, None, softcap), targets, block_size=block_size)
    with TensorSizes() as backward:
        logps.backward(upstream)
    assert max(forward.largest, backward.largest) <= block_size * vocab < tokens * vocab
    with_derivatives = backward if trains else forward
    # Next to a cap's slope there is room for half as many logits.
    assert with_derivatives.largest <= block_size * vocab // (1 if softcap is None else 2)
    assert with_derivatives.largest > block_size * vocab // 4, "the recorder saw the logits"


def test_the_recorder_sees_the_logits_of_the_plain_formula():
    hidden, weight, _, targets, _ = operands(64, 1000, 4)
    with TensorSizes() as sizes:
        plain_logps(hidden, LMHead(weight), targets).sum().backward()
    assert sizes.largest == 64 * 1000


def test_a_frozen_head_has_no_gradient_buffer():
    vocab, width = 1000, 64
    hidden, weight, bias, targets, upstream = operands(16, vocab, width, trains=False)
    with TensorSizes() as sizes:
        token_logps(hidden, LMHead(weight, bias), targets, block_size=1).backward(upstream)
    assert sizes.largest < vocab * width


@pytest.mark.parametrize(
    ("hidden_trains", "kept"), [(True, [(16, 64)]), (False, [])], ids=["direction only", "frozen student: nothing"]
)
def test_what_is_kept_for_the_backward_of_a_frozen_head(hidden_trains, kept):
    hidden, weight, bias, targets, _ = operands(16, 1000, 64, trains=False)
    hidden.requires_grad_(hidden_trains)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: packed.append(tuple(saved.shape)), lambda _: None):
        token_logps(hidden, LMHead(weight, bias), targets)
    assert packed == kept


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_without_gradients_nothing_is_computed_for_them(trains):
    hidden, weight, _, targets, _ = operands(16, 100, 64, trains=trains)
    with torch.no_grad(), TensorSizes() as sizes:
        logps = token_logps(hidden, weight, targets)
    assert not logps.requires_grad
    assert not {"addmm", "addmm_"} & set(sizes.operations), "only the logits are multiplied"
    torch.testing.assert_close(logps, plain_logps(hidden, LMHead(weight), targets).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("tokens", [0, 3], ids=["no tokens", "all tokens ignored"])
def test_nothing_to_score_stays_in_the_graph(tokens, trains):
    hidden, weight, _, targets, _ = operands(tokens, trains=trains)
    targets[:] = -100
    logps = token_logps(hidden, weight, targets)
    assert logps.tolist() == [0] * tokens
    logps.sum().backward()
    assert hidden.grad is not None and not hidden.grad.any()
    assert not trains or not weight.grad.any()


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_padding_changes_nothing(trains):
    hidden, weight, _, targets, upstream = operands(trains=trains)
    expected = token_logps(hidden, weight, targets, block_size=4)
    leaves = [hidden, weight][: 1 + trains]
    gradients = torch.autograd.grad(expected, leaves, upstream)

    # Padding may hold anything, also what is not a number.
    padded = torch.cat([hidden.new_full((2, 8), float("nan")), hidden, hidden.new_full((3, 8), float("inf"))])
    labels = torch.cat([targets.new_full((2,), -100), targets, targets.new_full((3,), -100)])
    actual = token_logps(padded, weight, labels, block_size=4)
    assert not actual[:2].any() and not actual[-3:].any()
    torch.testing.assert_close(actual[2:-3], expected, atol=1e-6, rtol=1e-6)
    padded_upstream = torch.nn.functional.pad(upstream, (2, 3), value=7.0)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves, padded_upstream), gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
def test_the_order_of_tokens_does_not_matter(trains):
    hidden, weight, _, targets, upstream = operands(trains=trains)
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    leaves = [hidden, weight][: 1 + trains]
    expected, actual = (
        token_logps(hidden, weight, targets, block_size=2),
        token_logps(hidden[order], weight, targets[order], block_size=2),
    )
    torch.testing.assert_close(actual, expected[order], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, upstream[order]),
        torch.autograd.grad(expected, leaves, upstream),
        atol=1e-5,
        rtol=1e-5,
    )


def test_only_the_bias_trains():
    hidden, weight, bias, targets, upstream = operands()
    head = LMHead(weight.detach(), bias)
    (expected,) = torch.autograd.grad(plain_logps(hidden, head, targets), bias, upstream)
    hidden.requires_grad_(False)
    (actual,) = torch.autograd.grad(token_logps(hidden, head, targets), bias, upstream)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_second_derivatives_are_refused_and_not_guessed():
    hidden, weight, _, targets, upstream = operands(trains=False)
    logps = token_logps(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(logps, hidden, upstream.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("vocab", "tokens"), [(49_152, 128), (128_256, 64), (131_072, 32), (262_144, 16), (10**8, 1)])
def test_default_block_stays_under_32_mib(vocab, tokens):
    assert default_block_size(vocab) == tokens


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"temperature": 0.0}, ConfigError, "temperature=0.0", id="temperature 0"),
        pytest.param({"block_size": 0}, ConfigError, "block_size=0", id="empty blocks"),
        pytest.param({"targets": torch.tensor([0, 37])}, ModelError, "Target 37 is outside .* 37 entries", id="id"),
        pytest.param({"targets": torch.tensor([-1, 3])}, ModelError, "Target -1 is outside", id="negative id"),
        pytest.param({"targets": torch.tensor([1])}, ModelError, r"1 targets .* \[1, 8\]", id="token count"),
        pytest.param({"hidden": torch.zeros(2, 9)}, ModelError, r"shape \(2, 9\)", id="width"),
        pytest.param({"backend": "liger"}, ConfigError, "Triton device or TRITON_INTERPRET=1", id="Liger on a CPU"),
        pytest.param(
            {"backend": "liger", "hidden": torch.zeros(2, 8, dtype=torch.float64)},
            ConfigError,
            "float64",
            id="Liger in float64",
        ),
        pytest.param(
            {"backend": "liger", "hidden": torch.zeros(2, 8).bfloat16(), "temperature": 0.7},
            ConfigError,
            "rounded into the torch.bfloat16",
            id="Liger cannot fold 1 / 0.7 into bfloat16",
        ),
    ],
)
def test_refusals(change, error, message):
    arguments = {"hidden": torch.zeros(2, 8), "targets": torch.tensor([0, 1]), "lm_head": torch.zeros(37, 8)} | change
    with pytest.raises(error, match=message):
        token_logps(**arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"weight": torch.zeros(8, 1, dtype=torch.uint8)}, "Dequantize", id="4-bit weight"),
        pytest.param({"weight": torch.zeros(8)}, "Dequantize or gather", id="flattened weight of a shard"),
        pytest.param({"bias": torch.zeros(3)}, "bias has shape", id="bias of another vocabulary"),
        pytest.param({"softcap": 0.0}, "soft-cap is 0.0", id="cap 0"),
        pytest.param({"scale": 0.0}, "scale is 0.0", id="scale 0"),
    ],
)
def test_heads_without_an_exact_reading_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        LMHead(**({"weight": torch.zeros(4, 2)} | fields))
