"""The benchmarks refuse numbers that nothing can be measured with, before anything is loaded or measured."""

import sys

import pytest

from examples.benchmarks import layouts, loss, overlap, rollouts, scoring_server, step
from examples.benchmarks.learning import __main__ as learning


WHOLE, FROM_ZERO = "no whole number of at least 1", "no whole number of at least 0"
ABOVE, SHARE = "no finite number above 0", "no number from 0 to 1"


@pytest.mark.parametrize(
    ("read", "flag", "value", "problem"),
    [
        (loss.read_arguments, "--tokens", "-8", WHOLE),
        (loss.read_arguments, "--tokens", "0", WHOLE),
        (loss.read_arguments, "--hidden", "0", WHOLE),
        (loss.read_arguments, "--sequences", "0", WHOLE),
        (loss.read_arguments, "--repeats", "1.5", WHOLE),
        (loss.read_arguments, "--beta", "2", SHARE),
        (loss.read_arguments, "--beta", "nan", SHARE),
        (loss.read_arguments, "--beta", "half", SHARE),
        (loss.read_arguments, "--limit", "inf", ABOVE),
        (loss.read_arguments, "--sequences", "3", "cannot be cut into 3 completions"),
        (step.read_arguments, "--tokens", "0", WHOLE),
        (step.read_arguments, "--batch-size", "0", WHOLE),
        (step.read_arguments, "--steps", "0", WHOLE),
        (rollouts.read_arguments, "--repeats", "0", WHOLE),
        (learning.read_arguments, "--steps", "0", WHOLE),
        (learning.read_arguments, "--jobs", "0", WHOLE),
        (learning.read_arguments, "--seeds", "-1", FROM_ZERO),
        (learning.read_arguments, "--learning-rate", "0", ABOVE),
        (layouts.main, "--batch", "0", WHOLE),
        (overlap.main, "--rounds", "0", WHOLE),
        (scoring_server.main, "--top_k", "-1", FROM_ZERO),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, capsys, read, flag, value, problem):
    monkeypatch.setattr(sys, "argv", ["benchmark", f"{flag}={value}"])
    with pytest.raises(SystemExit) as stop:
        read()
    assert stop.value.code == 2
    assert problem in capsys.readouterr().err


def test_zero_is_a_seed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--seeds", "0", "7", "--learning-rate", "1e-4", "--jobs", "1"])
    arguments = learning.read_arguments()
    assert (arguments.seeds, arguments.learning_rate, arguments.jobs) == ([0, 7], [1e-4], 1)
