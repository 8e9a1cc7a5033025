"""When a run is stopped, and what it is warned of."""

import logging

import pytest
from accelerate import Accelerator

from tests.training.runs import shared_tokenizers, write
from trl_xtok.errors import CoverageError
from trl_xtok.training.guards import CoverageGuard, EarlyWarnings


def test_a_run_stops_after_three_steps_in_a_row_below_the_coverage():
    guard = CoverageGuard(0.5)
    for coverage in (0.4, 0.4, 0.5, 0.1, 0.0):
        guard.check(coverage)
    with pytest.raises(CoverageError, match=r"Only 30\.0% .* `min_coverage=0\.5` for 3 optimizer steps") as error:
        guard.check(0.3)
    assert "raise `max_new_tokens`" in str(error.value)
    assert isinstance(error.value, RuntimeError)


def test_no_coverage_is_too_low_if_none_is_asked_for():
    guard = CoverageGuard(0.0)
    for _ in range(5):
        guard.check(0.0)


@pytest.fixture
def check(caplog):
    """Checks one log's worth of completions of 10 tokens and returns what was said."""
    Accelerator(cpu=True)
    warnings = EarlyWarnings()

    def run(rollouts: int, *, stopped: int = 64, length: float = 10.0, **dropped: float) -> str:
        caplog.clear()
        sums = {"rollouts": rollouts, "stopped": stopped, "sampled": rollouts * length}
        with caplog.at_level(logging.WARNING):
            warnings.check(sums | {f"dropped_{reason}": count for reason, count in dropped.items()})
        return "\n".join(message.removeprefix("[RANK 0] ") for message in caplog.messages)

    return run


def test_sound_completions_raise_no_warning(check):
    assert not any(check(64, length=length, unfinished=20) for length in (10, 20, 40))


def test_completions_that_grow_until_they_are_cut_off_raise_a_warning_once(check):
    assert check(64) == ""
    assert check(64, stopped=7, length=100) == ""
    said = check(64, stopped=6, length=120)
    assert said.startswith(
        "91% of the completions are cut off by `max_new_tokens`, at a mean length of 120; it was 10"
    )
    assert "lower `learning_rate`" in said
    assert check(64, stopped=0, length=128) == ""


def test_completions_that_are_cut_off_from_the_start_raise_another_warning(check):
    assert "from the start" in check(64, stopped=0)


def test_few_completions_are_judged_together(check):
    assert check(32, stopped=0) == ""
    assert check(31, stopped=0) == ""
    assert "cut off" in check(1, stopped=0)


def test_a_tenth_of_the_tokens_may_be_dropped(check):
    assert check(64, normalized=64) == ""
    said = check(64, normalized=40, unfinished=50)
    assert said.startswith("14.1% of the tokens are not trained on: 7.8% `unfinished`, 6.2% `normalized`. Many")
    assert check(64, normalized=640) == ""


def test_what_was_asked_for_raises_no_warning(check):
    assert check(64, not_one_to_one=300, long_chunk=100, whitespace=200) == ""


def test_a_run_is_warned_on_completions_of_several_steps(make_trainer, caplog):
    trainer = make_trainer(arguments=shared_tokenizers(), max_steps=9, per_device_train_batch_size=8)
    write(trainer, " red, green and blue, and more of it all", stop=False)
    with caplog.at_level(logging.WARNING, "trl_xtok"):
        trainer.train()
    (said,) = [message for message in caplog.messages if "cut off" in message]
    assert "100% of the completions are cut off by `max_new_tokens`, at a mean length of 11, from the start" in said
