"""`vocab_jsd` against the divergence of whole logits: values, gradients, events."""

import pytest
import torch

from tests.objectives.plain import TensorSizes, assert_same_with_gradients, operands, plain_logits
from trl_xtok.errors import ConfigError, ModelError
from trl_xtok.objectives import EventMap, LMHead, generalized_jsd, vocab_jsd
from trl_xtok.training.trl_compat import GKDTrainer


BETAS = [0.0, 0.3, 1.0]
ALL = EventMap()
SHARED = EventMap(columns=torch.tensor([3, 0, 36, 7])), EventMap(columns=torch.tensor([1, 40, 2, 0]))
CLASSES = (
    EventMap(classes=torch.arange(37) // 8, num_events=6),
    # Event 5 is the teacher's alone.
    EventMap(classes=torch.arange(41) // 7, num_events=6),
)
# What a padded head and tokens without a class need: classes of some of the columns.
SOME = (
    EventMap(columns=torch.arange(30), classes=torch.arange(30) // 5, num_events=6),
    EventMap(columns=torch.arange(40, 4, -1), classes=torch.arange(36) // 6, num_events=6),
)
MAPS = {"all tokens": (ALL, ALL), "shared tokens": SHARED, "classes": CLASSES, "classes of some tokens": SOME}


def divergences(*args, **kwargs):
    return vocab_jsd(*args, **kwargs).divergences


def event_logps(logits, events):
    taking_part = logits if events.columns is None else logits[:, events.columns]
    logps = taking_part.log_softmax(-1)
    if events.classes is None:
        return logps
    members = torch.nn.functional.one_hot(events.classes, events.num_events).to(logits.dtype)
    return (logps.exp() @ members).clamp(min=torch.finfo(logits.dtype).tiny).log()


def plain_jsd(hidden, head, teacher_hidden, teacher_head, maps, beta, temperature=1.0):
    student = event_logps(plain_logits(hidden, head, temperature), maps[0])
    teacher = event_logps(plain_logits(teacher_hidden, teacher_head, temperature), maps[1])
    return generalized_jsd(student, teacher, beta)


def pair(*, trains, same=False, softcap=None, scale=1.0):
    hidden, weight, bias, _, upstream = operands(trains=trains)
    teacher_hidden, teacher_weight, teacher_bias, *_ = operands(
        vocab=37 if same else 41, hidden=6, trains=False, seed=1
    )
    head = LMHead(weight, bias, softcap, scale)
    return hidden, head, teacher_hidden.detach(), LMHead(teacher_weight, teacher_bias), upstream


@pytest.mark.parametrize("block_size", [1, 12, None], ids=["one row", "ragged", "default"])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_blocks_change_neither_value_nor_gradient(maps, beta, trains, block_size):
    hidden, head, teacher_hidden, teacher_head, upstream = pair(trains=trains, same=maps[0] is ALL)
    inputs = [hidden, head.weight, head.bias] if trains else [hidden]
    expected = plain_jsd(hidden, head, teacher_hidden, teacher_head, maps, beta)
    actual = divergences(
        hidden,
        head,
        teacher_hidden,
        teacher_head,
        student_events=maps[0],
        teacher_events=maps[1],
        beta=beta,
        block_size=block_size,
    )
    assert_same_with_gradients(actual, expected, inputs, upstream, gradient_error=1e-5)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_log_ratios_of_the_sampled_events(maps, trains):
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=trains, same=maps[0] is ALL)
    student = event_logps(plain_logits(hidden, head, 0.7), maps[0])
    teacher = event_logps(plain_logits(teacher_hidden, teacher_head, 0.7), maps[1])
    events = torch.arange(len(hidden)) % min(4, student.shape[1])
    expected = (teacher - student).gather(1, events[:, None])[:, 0].detach()
    options = {"student_events": maps[0], "teacher_events": maps[1], "temperature": 0.7, "block_size": 12}
    result = vocab_jsd(hidden, head, teacher_hidden, teacher_head, sampled=events, **options)
    torch.testing.assert_close(result.log_ratios, expected)
    assert not result.log_ratios.requires_grad
    assert vocab_jsd(hidden, head, teacher_hidden, teacher_head, **options).log_ratios is None


@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize(("softcap", "scale", "temperature"), [(2.0, 0.3, 0.7), (None, -2.0, 3.0)])
def test_cap_scale_and_temperature(softcap, scale, temperature, maps):
    hidden, head, *teacher, upstream = pair(trains=True, same=maps[0] is ALL, softcap=softcap, scale=scale)
    inputs = [hidden, head.weight, head.bias]
    expected = plain_jsd(hidden, head, *teacher, maps, 0.5, temperature)
    actual = divergences(
        hidden, head, *teacher, student_events=maps[0], teacher_events=maps[1], temperature=temperature, block_size=8
    )
    assert_same_with_gradients(actual, expected, inputs, upstream, gradient_error=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_over_the_whole_vocabulary_it_is_the_loss_of_gkd(beta):
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=False, same=True)
    logits = plain_logits(hidden, head, 1.0), plain_logits(teacher_hidden, teacher_head, 1.0)
    expected = GKDTrainer.generalized_jsd_loss(*(side[None] for side in logits), beta=beta, reduction="sum")
    actual = divergences(
        hidden, head, teacher_hidden, teacher_head, student_events=ALL, teacher_events=ALL, beta=beta
    ).sum()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(actual, hidden), torch.autograd.grad(expected, hidden), atol=1e-5, rtol=1e-4
    )


def test_forward_kl_pulls_hardest_at_what_the_student_finds_impossible():
    """The example of GKD's loss: the student is sure of one token, the teacher of another one."""
    student, teacher = torch.tensor([[100.0, 0.0]]).requires_grad_(), torch.tensor([[0.0, 100.0]])
    head = LMHead(torch.eye(2))
    values = divergences(student, head, teacher, head, student_events=ALL, teacher_events=ALL, beta=0.0)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    torch.testing.assert_close(values, torch.tensor([100.0]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize(("temperature", "block_size"), [(0.0, None), (float("inf"), None), (1.0, 0)])
def test_blocks_and_temperature_must_be_positive(temperature, block_size):
    hidden, head, *teacher, _ = pair(trains=False, same=True)
    options = {"student_events": ALL, "teacher_events": ALL, "temperature": temperature, "block_size": block_size}
    with pytest.raises(ConfigError, match="positive"):
        divergences(hidden, head, *teacher, **options)


@pytest.mark.parametrize(("classes", "num_events"), [([0, 1], None), ([-1, 0], 2), ([0, 2], 2), ([1, 0], 2)])
def test_classes_are_numbered_from_zero(classes, num_events):
    with pytest.raises(ModelError, match="Number them from 0"):
        EventMap(classes=torch.tensor(classes), num_events=num_events)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("maps", [(ALL, ALL), CLASSES], ids=["all tokens", "classes"])
def test_extreme_logits_give_finite_values_and_gradients(maps, beta):
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=False, same=maps[0] is ALL, scale=300.0)
    values = divergences(
        hidden,
        head,
        teacher_hidden * 300,
        teacher_head,
        student_events=maps[0],
        teacher_events=maps[1],
        beta=beta,
    )
    (gradient,) = torch.autograd.grad(values.sum(), hidden)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 5.0], ids=["no cap", "cap"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("kind", ["all tokens", "shared tokens", "classes", "few tokens", "few classes"])
def test_all_that_lives_at_one_time_is_a_block_of_logits(kind, trains, beta, softcap):
    tokens, vocab, width, block_size = 64, 1000, 4, 16
    maps = {
        "all tokens": EventMap(),
        "shared tokens": EventMap(columns=torch.arange(0, vocab, 2)),
        "classes": EventMap(classes=torch.arange(vocab) // 2, num_events=vocab // 2),
        "few tokens": EventMap(columns=torch.arange(8)),
        "few classes": EventMap(classes=torch.arange(vocab) // 125, num_events=8),
    }
    hidden, weight, _, _, upstream = operands(tokens, vocab, width, trains=trains)
    teacher_hidden, teacher_weight, *_ = operands(tokens, vocab, width, trains=False, seed=1)
    heads = LMHead(weight, None, softcap), LMHead(teacher_weight, None, softcap)
    options = {"student_events": maps[kind], "teacher_events": maps[kind], "beta": beta, "block_size": block_size}
    with TensorSizes() as sizes:
        values = divergences(hidden, heads[0], teacher_hidden, heads[1], **options)
        values.backward(upstream)
    # What is kept or returned is as large as the inputs.
    results = 3 * tokens * width + 6 * tokens + (2 * vocab * width if trains else 0)
    assert block_size * vocab // 4 < sizes.peak <= block_size * vocab + results


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("maps", [(ALL, ALL), CLASSES], ids=["all tokens", "classes"])
def test_half_precision_loses_no_small_pulls(maps, dtype, error, trains):
    """Against float32 on the same rounded operands; the loss is small, as it is near the end of a training."""
    hidden, head, teacher_hidden, teacher_head, upstream = pair(trains=trains, same=maps[0] is ALL)
    halves = [x.detach().to(dtype) for x in (hidden, head.weight, head.bias, teacher_hidden, teacher_head.weight)]

    def gradients(to):
        own, weight, bias, others, others_weight = (half.to(to) for half in halves)
        inputs = [own.requires_grad_(), weight.requires_grad_()] if trains else [own.requires_grad_()]
        sides = LMHead(weight, bias), others, LMHead(others_weight)
        values = divergences(own, *sides, student_events=maps[0], teacher_events=maps[1], block_size=12)
        return torch.autograd.grad(values, inputs, 1e-5 * upstream.to(values.dtype))

    for half, full in zip(gradients(dtype), gradients(torch.float32), strict=True):
        assert half.dtype == dtype
        if dtype == torch.bfloat16:
            torch.testing.assert_close(half.float(), full, rtol=error, atol=error * float(full.abs().max()))
        else:
            # The result itself has few digits left this close to zero.
            torch.testing.assert_close(half.float(), full, rtol=error, atol=1e-7)


def test_both_sides_have_the_same_events():
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=False)
    with pytest.raises(ModelError, match="37 events and the teacher's 41"):
        divergences(hidden, head, teacher_hidden, teacher_head, student_events=ALL, teacher_events=ALL)


def test_as_many_positions_on_both_sides():
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=False)
    with pytest.raises(ModelError, match="13 positions of the student were given with 12"):
        divergences(hidden, head, teacher_hidden[1:], teacher_head, student_events=ALL, teacher_events=ALL)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_logits_that_are_all_large_lose_no_digits(maps, trains):
    hidden, head, teacher_hidden, teacher_head, _ = pair(trains=trains, same=maps[0] is ALL)

    def result(offset):
        # Multiples of 1/64 stay exact beside the offset.
        ours, theirs = ((each.detach() * 8).round() / 8 for each in (hidden, teacher_hidden))
        weights = [(each.weight.detach() * 8).round() / 8 for each in (head, teacher_head)]
        heads = [LMHead(each, torch.full((len(each),), offset)) for each in weights]
        inputs = [each.requires_grad_() for each in ([ours, weights[0]] if trains else [ours])]
        values = divergences(ours, heads[0], theirs, heads[1], student_events=maps[0], teacher_events=maps[1])
        return values, *torch.autograd.grad(values.sum(), inputs)

    torch.testing.assert_close(result(4096.0), result(0.0), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)
def test_tokens_that_a_head_rules_out(maps, beta, trains):
    hidden, head, teacher_hidden, teacher_head, upstream = pair(trains=trains, same=maps[0] is ALL)
    biases = [each.bias.detach().clone() for each in (head, teacher_head)]
    for bias, tokens in zip(biases, ([3, 8, 9], [3, 1, 25]), strict=True):
        bias[tokens] = -torch.inf
    ruled_out = [LMHead(each.weight, bias) for each, bias in zip((head, teacher_head), biases, strict=True)]
    unlikely = [LMHead(each.weight, bias.clamp(min=-1e4)) for each, bias in zip(ruled_out, biases, strict=True)]
    inputs = [hidden, head.weight] if trains else [hidden]
    expected = plain_jsd(hidden, unlikely[0], teacher_hidden, unlikely[1], maps, beta)
    actual = divergences(
        hidden,
        ruled_out[0],
        teacher_hidden,
        ruled_out[1],
        student_events=maps[0],
        teacher_events=maps[1],
        beta=beta,
    )
    assert expected.isfinite().all()
    assert_same_with_gradients(actual, expected, inputs, upstream, gradient_error=5e-3)


def test_forward_kl_does_not_pull_at_a_class_that_the_student_hardly_ever_writes():
    """Its log-prob ends at that of 1e-38, and so does the plain formula's."""
    hidden = torch.tensor([[60.0, 1.0]], requires_grad=True)
    heads = LMHead(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])), LMHead(torch.eye(3))
    maps = (EventMap(classes=torch.arange(3), num_events=3),) * 2
    teacher_hidden = torch.tensor([[0.0, 0.5, 1.0]])
    expected = plain_jsd(hidden, heads[0], teacher_hidden, heads[1], maps, 0.0)
    actual = divergences(
        hidden, heads[0], teacher_hidden, heads[1], student_events=maps[0], teacher_events=maps[1], beta=0.0
    )
    assert_same_with_gradients(actual, expected, [hidden], torch.ones(1), gradient_error=1e-5)


def test_events_of_no_token():
    none = torch.tensor([], dtype=torch.long)
    for options in ({"classes": none, "num_events": 0}, {"columns": none}):
        with pytest.raises(ModelError, match="no token makes up an event"):
            EventMap(**options)


def test_each_token_that_takes_part_has_a_class():
    with pytest.raises(ModelError, match="2 `columns` have 3 `classes`"):
        EventMap(columns=torch.arange(2), classes=torch.arange(3), num_events=3)
    hidden, head, *teacher, _ = pair(trains=False)
    some = EventMap(classes=torch.arange(30) // 5, num_events=6)
    with pytest.raises(ModelError, match="30 classes were given for a head of 37 tokens"):
        divergences(hidden, head, *teacher, student_events=some, teacher_events=CLASSES[1])


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_beta_is_a_share(beta):
    hidden, head, *teacher, _ = pair(trains=False)
    with pytest.raises(ConfigError, match=r"`beta` must be in \[0, 1\]"):
        divergences(hidden, head, *teacher, student_events=CLASSES[0], teacher_events=CLASSES[1], beta=beta)


@pytest.mark.parametrize("kind", ["columns", "classes"])
def test_few_events_take_few_tiles(kind):
    """As many as cut up the events alone would be one for each token."""
    hidden, weight, *_ = operands(32, 20_000, 4, trains=False)
    events = torch.arange(0, 20_000, 2_500) if kind == "columns" else torch.arange(20_000) // 2_500
    maps = EventMap(columns=events) if kind == "columns" else EventMap(classes=events, num_events=8)
    with TensorSizes() as sizes:
        divergences(hidden, LMHead(weight), hidden.detach(), LMHead(weight), student_events=maps, teacher_events=maps)
    assert len(sizes.operations) < 4_000
