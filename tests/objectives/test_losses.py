import pytest
import torch

from trl_xtok.objectives import LMHead, chunk_advantages, chunk_rkl, reverse_kl_estimate, sum_by_chunk, token_logps


def test_gradient_is_minus_the_advantage():
    logps = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    advantages = torch.tensor([0.5, -4.0, 0.0], requires_grad=True)
    losses = chunk_rkl(logps, advantages)
    assert losses.tolist() == [0.5, -8.0, 0.0]
    losses.sum().backward()
    assert logps.grad.tolist() == [-0.5, 4.0, 0.0]
    assert advantages.grad is None


def test_gradient_reaches_the_hidden_states_as_the_hand_formula_says():
    """`d loss_i / d hidden_i = -A_i (W[y_i] - p_i @ W)`."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 4, generator=generator, requires_grad=True)
    weight = torch.randn(11, 4, generator=generator)
    targets = torch.randint(11, (6,), generator=generator)
    chunk_ids, teacher = torch.tensor([0, 0, 1, -1, 2, 2]), torch.tensor([-3.0, -1.0, -9.0])

    logps = token_logps(hidden, LMHead(weight), targets)
    advantages = chunk_advantages(logps, teacher, chunk_ids, "proportional")
    chunk_rkl(logps, advantages).sum().backward()

    log_probs = (hidden.detach() @ weight.T).log_softmax(-1)
    own = log_probs.gather(1, targets[:, None]).squeeze(1)
    totals = torch.stack([own[:2].sum(), own[2], own[4:].sum()])
    by_hand = torch.zeros(6)
    for i, number in enumerate(chunk_ids.tolist()):
        if number >= 0:
            by_hand[i] = (teacher[number] / totals[number] - 1) * own[i]
    torch.testing.assert_close(hidden.grad, -by_hand[:, None] * (weight[targets] - log_probs.exp() @ weight))


def test_same_tokenizer_gives_the_gradient_of_sampled_token_on_policy_distillation():
    student = torch.tensor([-1.0, -0.5, -4.0], requires_grad=True)
    teacher = torch.tensor([-2.0, -0.1, -1.0])
    advantages = chunk_advantages(student, teacher, torch.arange(3), "proportional")
    chunk_rkl(student, advantages).sum().backward()
    torch.testing.assert_close(student.grad, student.detach() - teacher, atol=0, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_chunk_rule_is_unbiased_for_the_reverse_kl_of_a_chunk(seed):
    """Two-token chunks over a tiny vocabulary: the exact expectation of the gradient against autograd on the KL."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(0)

    paths = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    logps = torch.stack([first.log_softmax(0)[paths[:, 0]], second.log_softmax(1)[paths[:, 0], paths[:, 1]]], dim=1)
    chunk_ids = torch.arange(9).repeat_interleave(2)
    student = sum_by_chunk(logps.flatten(), chunk_ids, 9)

    kl = (student.exp() * reverse_kl_estimate(student, teacher)).sum()
    expected = torch.autograd.grad(kl, [first, second], retain_graph=True)
    advantages = chunk_advantages(logps.flatten(), teacher, chunk_ids, "chunk")
    weighted = chunk_rkl(logps.flatten(), advantages).view(9, 2).sum(1) * student.exp().detach()
    actual = torch.autograd.grad(weighted.sum(), [first, second])
    torch.testing.assert_close(actual, expected)


def test_reverse_kl_estimate_is_student_minus_teacher():
    assert reverse_kl_estimate(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0])).tolist() == [1.0, -2.0]
