"""What a run reports: names, and ratios of sums."""

import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from accelerate import Accelerator

from tests import real_tokenizers
from trl_xtok import Alignment, TokenizerAligner
from trl_xtok.training.metrics import DROP_REASONS, PHASES, RunMetrics
from trl_xtok.training.selection import Selection
from trl_xtok.training.window import CHARGED_REASONS, Rollout, assemble


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def aligner() -> TokenizerAligner:
    return TokenizerAligner(real_tokenizers.smollm2(), real_tokenizers.mistral1())


def rollout(aligner: TokenizerAligner, text: str, *, stopped: bool, prompt_length: int = 3) -> Rollout:
    ids = real_tokenizers.smollm2().encode(text, add_special_tokens=False)
    ids += [real_tokenizers.smollm2().eos_token_id] * stopped
    return Rollout([1] * prompt_length, [1], ids, aligner.align(ids), aligner.canonical(ids), frozenset(), stopped)


def micro_batch(*rollouts: Rollout):
    return assembled(rollouts, Selection())


def assembled(rollouts: Sequence[Rollout], selection: Selection):
    readable = [len(rollout.alignment.teacher_ids) for rollout in rollouts]
    return assemble(rollouts, readable, selection, torch.device("cpu"))


def collected(accelerator: Accelerator, *batches) -> dict[str, float]:
    metrics = RunMetrics()
    for batch in batches:
        metrics.add_rollouts(batch)
    return metrics.collect(accelerator)


def test_every_reason_to_drop_a_token_has_a_metric():
    documented = re.search(r"in no chunk, `None` if it is in one: (.*)\n    *end_chunk", Alignment.__doc__, re.DOTALL)
    named = set(re.findall(r"`(\w+)` \(", documented[1]))
    assert named >= {"unknown_id", "invalid_utf8", "cut_character", "normalized", "unspellable"}
    assert named | {"long_chunk", "not_one_to_one", "teacher", "unfinished", "whitespace"} == set(DROP_REASONS)


@pytest.mark.parametrize(
    ("selection", "reason", "most"),
    [
        (Selection(one_to_one_only=True), "not_one_to_one", 1),
        (Selection(max_chunk_tokens=2), "long_chunk", 2),
        (Selection(max_chunk_tokens=1), "long_chunk", 1),
    ],
)
def test_chunks_can_be_left_out_by_their_size(aligner, selection, reason, most):
    row = rollout(aligner, "In 2024 die Donaudampfschifffahrtsgesellschaft 你好", stopped=True)
    sizes = Counter(row.alignment.student_chunks) | Counter(row.alignment.teacher_chunks)
    assert max(sizes.values()) > 2
    batch = assembled([row], selection)
    kept = batch.chunks.tolist()
    assert kept == [chunk if sizes[chunk] <= most else -1 for chunk in row.alignment.student_chunks]
    assert batch.dropped == {reason: kept.count(-1)}
    assert not batch.charged.any()


def test_what_is_charged_is_something_that_is_dropped():
    assert set(DROP_REASONS) > CHARGED_REASONS


def test_lengths_and_stops_are_those_of_the_completions(accelerator, aligner):
    long, short = "one two three four five six", "seven eight nine"
    rows = micro_batch(rollout(aligner, long, stopped=True), rollout(aligner, short, stopped=False))
    metrics = collected(accelerator, rows, micro_batch(rollout(aligner, short, stopped=True)))
    assert {name: value for name, value in metrics.items() if name.startswith("completions/")} == {
        "completions/mean_length": (7 + 3 + 4) / 3,
        "completions/min_length": 3,
        "completions/max_length": 7,
        "completions/clipped_ratio": pytest.approx(1 / 3),
        "completions/mean_terminated_length": 5.5,
        "completions/min_terminated_length": 4,
        "completions/max_terminated_length": 7,
    }
    assert metrics["xtok/stop_rate"] == pytest.approx(2 / 3)


def test_what_there_is_nothing_of_is_left_out(accelerator, aligner):
    metrics = collected(accelerator, micro_batch(rollout(aligner, "one two", stopped=False)))
    assert "completions/mean_terminated_length" not in metrics
    assert "xtok/reverse_kl_per_byte" not in metrics, "a zero would read as a perfect match"


def test_dropped_tokens_are_shares_of_the_sampled_tokens_by_reason(accelerator, aligner):
    metrics = collected(accelerator, micro_batch(rollout(aligner, "one two three four", stopped=False)))
    dropped = {name: value for name, value in metrics.items() if name.startswith("xtok/dropped_")}
    assert dropped.keys() == {f"xtok/dropped_{reason}" for reason in DROP_REASONS}
    assert dropped.pop("xtok/dropped_unfinished") == 1 / 4
    assert set(dropped.values()) == {0}


def test_reverse_kl_is_a_ratio_of_sums(accelerator, aligner):
    metrics = RunMetrics()
    batch = micro_batch(rollout(aligner, "one", stopped=True))
    for _ in range(2):
        metrics.add_rollouts(batch)
    metrics.add({"covered": 3, "clipped": 1, "log_ratio": torch.tensor(6.0), "bytes": torch.tensor(3), "ends": 0})
    metrics.add({"covered": 1, "clipped": 0, "log_ratio": torch.tensor(-1.0), "bytes": torch.tensor(7), "ends": 2})
    metrics.add({"end_log_ratio": torch.tensor(0.5)})
    values = metrics.collect(accelerator)
    assert values["xtok/reverse_kl_per_byte"] == 0.5
    assert values["xtok/reverse_kl_end"] == 0.25
    assert values["xtok/clipped_advantages"] == 0.25
    assert values["xtok/coverage"] == 4 / 4


def test_tokens_add_up_over_the_run_and_everything_else_starts_over(accelerator, aligner):
    metrics = RunMetrics()
    for expected in (3 + 4, 2 * (3 + 4)):
        metrics.add_rollouts(micro_batch(rollout(aligner, "one two three", stopped=True)))
        values = metrics.collect(accelerator)
        assert values["num_tokens"] == expected
        assert values["completions/mean_length"] == 4
    assert metrics.collect(accelerator) == {}


def test_the_time_of_a_step_is_that_of_its_phases(accelerator, aligner):
    metrics = RunMetrics()
    for number, phase in enumerate(PHASES, start=1):
        metrics.add({f"time_{phase}": 2.0 * number})
    metrics.add_rollouts(micro_batch(rollout(aligner, "one", stopped=True)))
    metrics.add({"steps": 2.0})
    values = metrics.collect(accelerator)
    assert [values[f"time/{phase}"] for phase in PHASES] == [1, 2, 3, 4]
    assert values["step_time"] == 10


def test_a_phase_is_timed(accelerator):
    metrics = RunMetrics()
    with metrics.timed("align"):
        pass
    assert 0 < float(metrics._sums["time_align"]) < 1


def test_a_phase_within_another_counts_once(accelerator, monkeypatch):
    clock = iter([0, 1, 2, 4, 5, 10])
    monkeypatch.setattr("trl_xtok.training.metrics.time.perf_counter", lambda: next(clock))
    metrics = RunMetrics()
    with metrics.timed("rollout"):
        for _ in range(2):
            with metrics.timed("align"):
                pass
    assert (metrics._sums["time_align"], metrics._sums["time_rollout"]) == (2, 8)


def test_a_sum_that_is_not_reported_is_an_error():
    with pytest.raises(KeyError, match="'trainde' is not a sum that is reported; the sums are tokens, sampled"):
        RunMetrics().add({"trainde": 1.0})


def test_noncanonical_rollouts_are_counted(accelerator, aligner):
    letters = real_tokenizers.smollm2().convert_tokens_to_ids(list("one"))
    spelled = Rollout([1], [1], letters, aligner.align(letters), aligner.canonical(letters), frozenset(), False)
    metrics = collected(accelerator, micro_batch(spelled, rollout(aligner, "one", stopped=True)))
    assert metrics["xtok/noncanonical_ratio"] == 0.5
