import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_xtok.errors import ConfigError
from trl_xtok.objectives import (
    additive,
    chunk,
    chunk_advantages,
    chunk_sizes,
    clip_advantages,
    dropped_charge,
    finite_chunks,
    proportional,
    spread_over_tokens,
    sum_by_chunk,
    text_correction,
    uniform,
)


CREDITS = ["proportional", "additive", "uniform", "chunk"]
CONSERVING = CREDITS[:3]

logp = st.one_of(st.floats(-30, 0), st.floats(-1e-6, 0), st.just(0.0))


@st.composite
def signals(draw, dtype=torch.float64):
    """Student log-probs, teacher chunk log-probs and chunk ids, with dropped tokens and chunks without tokens."""
    ids = torch.tensor(draw(st.lists(st.integers(-1, 5), max_size=20)), dtype=torch.long)
    student = torch.tensor(draw(st.lists(logp, min_size=len(ids), max_size=len(ids))), dtype=dtype)
    teacher = torch.tensor(draw(st.lists(st.floats(-60, 1e-6), min_size=6, max_size=6)), dtype=dtype)
    return student, teacher, ids


def loop_advantages(student, teacher, ids, credit):
    """The formulas, one chunk and one token at a time."""
    advantages = torch.zeros_like(student)
    for number, teacher_logp in enumerate(teacher.tolist()):
        tokens = (ids == number).nonzero().flatten().tolist()
        logps = [student[i].item() for i in tokens]
        student_logp, m = sum(logps), len(tokens)
        for i, p in zip(tokens, logps, strict=True):
            if credit == "chunk":
                advantages[i] = teacher_logp - student_logp
            elif credit == "uniform":
                advantages[i] = teacher_logp / m - p
            elif credit == "additive" or student_logp > -1e-8:
                advantages[i] = (teacher_logp - student_logp) / m
            else:
                advantages[i] = (teacher_logp / student_logp - 1) * p
    return advantages


@pytest.mark.parametrize("credit", CREDITS)
@given(signal=signals())
def test_advantages_equal_the_formulas(credit, signal):
    torch.testing.assert_close(
        chunk_advantages(*signal, credit), loop_advantages(*signal, credit), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("credit", CREDITS)
@given(signal=signals(torch.float32))
def test_advantages_share_out_the_gap_and_nothing_else(credit, signal):
    student, teacher, ids = signal
    sizes = chunk_sizes(ids, len(teacher))
    gaps = (teacher - sum_by_chunk(student, ids, len(teacher))).masked_fill(sizes == 0, 0)
    sums = sum_by_chunk(chunk_advantages(student, teacher, ids, credit), ids, len(teacher))
    torch.testing.assert_close(sums, gaps if credit in CONSERVING else gaps * sizes, atol=2e-4, rtol=1e-5)


@given(signal=signals(torch.float32))
def test_no_proportional_advantage_exceeds_the_gap(signal):
    student, teacher, ids = signal
    gaps = spread_over_tokens(teacher - sum_by_chunk(student, ids, len(teacher)), ids)
    assert (proportional(student, teacher, ids).abs() <= gaps.abs()).all()


@pytest.mark.parametrize("credit", CREDITS)
@given(signal=signals())
def test_tokens_in_no_chunk_get_nothing_and_change_nothing(credit, signal):
    student, teacher, ids = signal
    padded = torch.cat([student, student.new_full((3,), -5.0)]), teacher, torch.cat([ids, ids.new_full((3,), -1)])
    advantages = chunk_advantages(*padded, credit)
    assert not advantages[: len(ids)][ids < 0].any()
    assert not advantages[len(ids) :].any()
    torch.testing.assert_close(advantages[: len(ids)], chunk_advantages(*signal, credit), atol=0, rtol=0)


@pytest.mark.parametrize("credit", CREDITS)
@given(
    logps=st.lists(st.tuples(logp, st.floats(-60, 1e-6)), max_size=20),
)
def test_same_tokenizer_gives_sampled_token_on_policy_distillation(credit, logps):
    """With one token per chunk on both sides every rule is the token's own log-ratio, bit for bit."""
    student = torch.tensor([student for student, _ in logps], dtype=torch.float32)
    teacher = torch.tensor([teacher for _, teacher in logps], dtype=torch.float32)
    advantages = chunk_advantages(student, teacher, torch.arange(len(logps)), credit)
    torch.testing.assert_close(advantages, teacher - student, atol=0, rtol=0)


@pytest.mark.parametrize("credit", CREDITS)
def test_advantages_carry_no_gradient(credit):
    student = torch.tensor([-1.0, -2.0], requires_grad=True)
    teacher = torch.tensor([-2.0], requires_grad=True)
    assert not chunk_advantages(student, teacher, torch.zeros(2, dtype=torch.long), credit).requires_grad


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        pytest.param([0.0, 0.0], [-3.0, -3.0], id="certain: nothing to divide by"),
        pytest.param([-4e-9, -4e-9], [-3.0, -3.0], id="just above -1e-8: additive"),
        pytest.param([-9e-9, -3e-9], [-4.5, -1.5], id="just below -1e-8: proportional"),
        pytest.param([1e-7, -4e-8], [0.0, -6.0], id="round-off above 0 takes no share"),
        pytest.param([1e-7, 1e-7], [-3.0, -3.0], id="round-off alone: additive"),
    ],
)
def test_proportional_next_to_certainty(student, expected):
    advantages = proportional(torch.tensor(student), torch.tensor([-6.0]), torch.tensor([0, 0]))
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rule", "credit"), [*zip([proportional, additive, uniform, chunk], CREDITS, strict=True)])
def test_the_name_selects_the_function(rule, credit):
    signal = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0]), torch.tensor([0, 0])
    assert chunk_advantages(*signal, credit).equal(rule(*signal))


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="credit='even' is no rule"):
        chunk_advantages(torch.zeros(1), torch.zeros(1), torch.zeros(1, dtype=torch.long), "even")


def loop_correction(student, canonical, ids, differ, credit):
    """The text correction, one unit and one token at a time."""
    correction = torch.zeros_like(student)
    for number in range(len(canonical)):
        tokens = (ids == number).nonzero().flatten().tolist()
        if not tokens or not differ[number]:
            continue
        sampled, m = sum(student[i].item() for i in tokens), len(tokens)
        gain = math.log1p(math.exp(canonical[number].item() - sampled)) if canonical[number] <= sampled else None
        if gain is None:
            gain = canonical[number].item() - sampled + math.log1p(math.exp(sampled - canonical[number].item()))
        for i in tokens:
            if credit == "chunk":
                correction[i] = gain
            elif credit in ("additive", "uniform") or sampled > -1e-8:
                correction[i] = gain / m
            else:
                correction[i] = gain * student[i].item() / sampled
    return correction


@pytest.mark.parametrize("credit", CREDITS)
@given(signal=signals(), differ=st.lists(st.booleans(), min_size=6, max_size=6))
def test_text_correction_equals_the_loop(credit, signal, differ):
    student, canonical, ids = signal
    # What is not to be read may be anything.
    canonical = canonical.where(torch.tensor(differ), float("nan"))
    torch.testing.assert_close(
        text_correction(student, canonical, ids, torch.tensor(differ), credit),
        loop_correction(student, canonical, ids, differ, credit),
        atol=1e-9,
        rtol=1e-9,
    )


@pytest.mark.parametrize("credit", CONSERVING)
@given(signal=signals(), canonical=st.lists(st.floats(-60, 0), min_size=2, max_size=2))
def test_corrected_advantages_sum_to_the_gap_of_the_text(credit, signal, canonical):
    """Chunks 0 to 2 lie in unit 0 and chunks 3 to 5 in unit 1."""
    student, teacher, ids = signal
    units, canonical = torch.where(ids < 0, -1, ids // 3), torch.tensor(canonical, dtype=torch.float64)
    corrected = chunk_advantages(student, teacher, ids, credit) - text_correction(
        student, canonical, units, torch.tensor([True, True]), credit
    )
    sampled = sum_by_chunk(student, units, 2)
    taught = sum_by_chunk(teacher * (chunk_sizes(ids, 6) > 0), torch.arange(6) // 3, 2)
    expected = (taught - torch.logaddexp(sampled, canonical)).where(chunk_sizes(units, 2) > 0, 0.0)
    torch.testing.assert_close(sum_by_chunk(corrected, units, 2), expected, atol=1e-9, rtol=1e-9)


@given(signal=signals(torch.float32))
def test_text_correction_never_rewards_a_path(signal):
    student, canonical, ids = signal
    correction = text_correction(student, canonical, ids, torch.ones(6, dtype=torch.bool), "proportional")
    assert (correction >= 0).all()


def test_text_correction_carries_no_gradient():
    student = torch.tensor([-1.0], requires_grad=True)
    canonical = torch.tensor([-2.0], requires_grad=True)
    ids = torch.zeros(1, dtype=torch.long)
    assert not text_correction(student, canonical, ids, torch.tensor([True]), "additive").requires_grad


def test_clipping_tells_what_it_clipped():
    advantages = torch.tensor([-11.0, -10.0, 0.5, 12.0])
    clipped, outside = clip_advantages(advantages, 10.0)
    assert clipped.tolist() == [-10.0, -10.0, 0.5, 10.0]
    assert outside.tolist() == [True, False, False, True]
    untouched, outside = clip_advantages(advantages, None)
    assert untouched.equal(advantages) and not outside.any()


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_clip_that_leaves_nothing_is_refused(clip):
    with pytest.raises(ConfigError, match="leaves nothing to learn from"):
        clip_advantages(torch.zeros(1), clip)


@pytest.mark.parametrize(
    ("dropped_advantage", "total", "count", "charge"),
    [
        pytest.param("mean", -6.0, 4, -1.5, id="mean"),
        pytest.param("mean", 6.0, 4, 0.0, id="never a reward"),
        pytest.param("mean", 0.0, 0, 0.0, id="nothing was scored"),
        pytest.param(-2.0, -6.0, 4, -2.0, id="given"),
        pytest.param(0.0, -6.0, 4, 0.0, id="no charge"),
    ],
)
def test_charge_for_what_the_student_made_unscorable(dropped_advantage, total, count, charge):
    assert dropped_charge(dropped_advantage, torch.tensor(total), torch.tensor(count)).item() == charge


def test_only_finite_teacher_sums_can_be_scored():
    logps = torch.tensor([-1.0, float("-inf"), float("nan"), 0.0])
    assert finite_chunks(logps).tolist() == [True, False, False, True]
