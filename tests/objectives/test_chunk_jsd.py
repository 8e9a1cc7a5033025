"""`chunk_jsd` and `generalized_jsd` against plain formulas, TRL, and the limits that have a name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_xtok.objectives import chunk_jsd, generalized_jsd
from trl_xtok.training.trl_compat import GKDTrainer


BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
CHUNKS = torch.tensor([0, 0, 1, -1, 2, 2, 2])


def coins(num_chunks=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = (-3 * torch.rand(len(CHUNKS), generator=generator, dtype=torch.float64)).requires_grad_()
    return student, -4 * torch.rand(num_chunks, generator=generator, dtype=torch.float64)


def plain(student_logps, teacher, beta, temperature):
    """Chunk by chunk, with probabilities."""
    losses = torch.zeros_like(student_logps)
    for number, teacher_logp in enumerate(teacher):
        inside = number == CHUNKS
        p, q = (student_logps[inside].sum() / temperature).exp(), (teacher_logp / temperature).exp()
        s, t = torch.stack([p, 1 - p]), torch.stack([q, 1 - q])
        m = beta * t + (1 - beta) * s
        if beta in (0, 1):
            divergence = (t * (t / s).log()).sum() if beta == 0 else (s * (s / t).log()).sum()
        else:
            divergence = beta * (t * (t / m).log()).sum() + (1 - beta) * (s * (s / m).log()).sum()
        losses = losses + inside * divergence / inside.sum()
    return losses


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_equal_the_plain_formula(beta, temperature):
    student, teacher = coins()
    expected = plain(student, teacher, beta, temperature)
    actual = chunk_jsd(student, teacher, CHUNKS, beta=beta, temperature=temperature)
    torch.testing.assert_close(actual, expected)
    upstream = torch.arange(1.0, 8.0, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(actual, student, upstream), torch.autograd.grad(expected, student, upstream)
    )


@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_over_a_vocabulary_is_that_of_gkd(beta):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 11, generator=generator)
    expected = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    actual = generalized_jsd(student.log_softmax(-1), teacher.log_softmax(-1), beta)
    torch.testing.assert_close(actual.sum(), expected, atol=1e-5, rtol=1e-5)


@given(
    student=st.lists(st.floats(-200, 0), min_size=1, max_size=5),
    teacher=st.floats(-1e4, 0),
    beta=st.sampled_from(BETAS),
    temperature=st.floats(0.1, 100),
)
def test_nothing_is_ever_nan_or_below_zero(student, teacher, beta, temperature):
    """Certain and impossible chunks, and a teacher that 4-bit noise lifts above probability 1."""
    logps = torch.tensor(student, requires_grad=True)
    chunks = torch.zeros(len(student), dtype=torch.long)
    for chunk_logp in (teacher, 1e-4):
        losses = chunk_jsd(logps, torch.tensor([chunk_logp]), chunks, beta=beta, temperature=temperature)
        (gradient,) = torch.autograd.grad(losses.sum(), logps)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()
        assert losses.sum() > -1e-5


@pytest.mark.parametrize("temperature", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize("logp", [-1e-7, -1.2e-6, -1e-5, -0.69, -0.7])
def test_the_gradient_of_a_certain_chunk_is_finite(logp, temperature):
    student = torch.tensor([logp], requires_grad=True)
    losses = chunk_jsd(student, torch.tensor([-2.0]), torch.tensor([0]), temperature=temperature)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("beta", BETAS)
def test_a_chunk_more_certain_than_one_in_a_million_counts_as_that(beta, temperature):
    """Before the temperature, which would move the bound."""
    options = {"beta": beta, "temperature": temperature}
    student, teacher = (
        torch.zeros(len(CHUNKS), dtype=torch.float64, requires_grad=True),
        torch.full((3,), -1.0).double(),
    )
    losses = chunk_jsd(student, teacher, CHUNKS, **options)
    of_bound = torch.zeros(len(CHUNKS), dtype=torch.float64)
    of_bound[[0, 2, 4]] = -1e-6
    torch.testing.assert_close(losses, plain(of_bound, teacher, **options), atol=1e-12, rtol=1e-6)
    assert not torch.autograd.grad(losses.sum(), student)[0].any()


@pytest.mark.parametrize("beta", BETAS)
def test_equal_chunks_cost_nothing_and_pull_nowhere(beta):
    student = torch.tensor([-0.3, -0.2, -1.5], requires_grad=True)
    losses = chunk_jsd(student, torch.tensor([-0.5, -1.5]), torch.tensor([0, 0, 1]), beta=beta)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    torch.testing.assert_close(losses, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_lowers_what_the_teacher_likes_less(beta):
    student = torch.tensor([-0.5, -2.0], requires_grad=True)
    losses = chunk_jsd(student, torch.tensor([-2.0, -0.5]), torch.arange(2), beta=beta)
    (gradient,) = torch.autograd.grad(losses.sum(), student)
    assert gradient[0] > 0 > gradient[1]
