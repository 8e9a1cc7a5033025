"""What the learning experiment measures with: right answers, operations, and how many times as much SFT needs."""

from random import Random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmarks.learning.arms import ARMS
from examples.benchmarks.learning.report import accuracy_at, times_as_much
from examples.benchmarks.learning.runs import COUNTED_TOO, Run
from examples.benchmarks.learning.tasks import TASKS
from trl_xtok.objectives import token_logps


@pytest.mark.parametrize(
    ("task", "a", "b", "written", "right"),
    [
        ("digits", 17, 25, "17+25: 10+20=30, 7+5=12, 30+12=42. The sum is 42.", True),
        ("digits", 17, 25, "Answer: 42.  ", True),
        ("digits", 17, 25, "The sum is 142.", False),
        ("digits", 17, 25, "The sum is 421.", False),
        ("digits", 17, 25, "The sum is 42. The sum is 43.", False),
        ("digits", 17, 25, "The sum is 42. And so on", False),
        ("digits", 17, 25, "The sum is 42", False),
        ("digits", 17, 25, "The sum is .", False),
        ("digits", 17, 25, "", False),
        ("words", 17, 25, "Now she has forty-two.", True),
        ("words", 17, 25, "Now she has forty-three.", False),
        ("words", 17, 25, "Now she has one hundred forty-two.", False),
        ("words", 17, 25, "Now she has one hundred and forty-two.", False),
        ("words", 17, 25, "Now she has forty.", False),
        ("words", 17, 25, "Now she has two.", False),
        ("words", 20, 20, "Now she has forty-two.", False),
        ("words", 77, 65, "Now she has one hundred forty-two.", True),
        ("words", 77, 65, "Now she has forty-two.", False),
    ],
)
def test_an_answer_is_right_if_it_is_the_last_number(task, a, b, written, right):
    assert TASKS[task](Random(0), a, b).is_solved_by(written) == right


@pytest.mark.parametrize("task", TASKS)
def test_the_task_solves_itself(task):
    random = Random(1)
    for _ in range(300):
        problem = TASKS[task](random, random.randrange(100), random.randrange(100))
        assert problem.is_solved_by(problem.solution)


@pytest.mark.parametrize(("trains", "products"), [(False, 2), (True, 4)], ids=["frozen head", "trainable head"])
@pytest.mark.parametrize("block_size", [1, 7, 100])
def test_every_product_of_the_loss_is_counted(trains, products, block_size):
    """Logits and the gradient of the states; a trainable head computes the logits again, and its own gradient."""
    tokens, hidden, vocab = 20, 16, 96
    states, weight = torch.randn(tokens, hidden).requires_grad_(), torch.randn(vocab, hidden).requires_grad_(trains)
    with FlopCounterMode(display=False, custom_mapping=COUNTED_TOO) as counter:
        token_logps(states, weight, torch.arange(tokens), block_size=block_size).sum().backward()
    assert counter.get_total_flops() == products * 2 * tokens * hidden * vocab


def run(arm: str, flops: list[float], accuracies: list[float]) -> Run:
    return Run(arm, 0, 1e-3, flops, accuracies)


def test_accuracy_lies_on_straight_lines_between_checkpoints():
    measured = run("chunk_jsd", [0.0, 10.0, 20.0], [0.2, 0.6, 0.4])
    assert [accuracy_at(measured, place) for place in (0, 5, 10, 15, 20, 30)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.5, 0.4, 0.4]
    )


@pytest.mark.parametrize(
    ("flops", "accuracy", "ratio"),
    [
        # The reference is at 0.4 after 40 operations and at 0.8 after 80, its last.
        ([0.0, 20.0], 0.4, "2"),
        ([0.0, 80.0], 0.4, "0.5"),
        ([0.0, 40.0], 0.9, "> 2"),
        ([0.0, 40.0], 0.0, "0"),
    ],
)
def test_how_many_times_as_much_the_reference_needs(flops, accuracy, ratio):
    reference = [run("SFT on the teacher's texts", [0.0, 80.0], [0.0, 0.8])]
    assert ARMS["SFT on the teacher's texts"].reads
    assert times_as_much([run("chunk_jsd", flops, [0.0, accuracy])], reference) == ratio
    assert times_as_much(reference, reference) == "1"
