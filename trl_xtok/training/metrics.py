"""What a run reports: sums collected on the device, brought together once per log.

Ratios are ratios of sums over all micro-batches, steps and ranks since the last log, never means of ratios.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor

from .window import MicroBatch


# In this order on every rank, so that one tensor carries them all.
DROP_REASONS = (
    "cut_character",
    "invalid_utf8",
    "long_chunk",
    "no_teacher_end",
    "no_text",
    "normalized",
    "not_one_to_one",
    "teacher",
    "unfinished",
    "unknown_id",
    "unspellable",
    "whitespace",
)
PHASES = ("rollout", "align", "teacher", "student")
_SUMS = (
    "tokens",
    "sampled",
    "covered",
    "clipped",
    "log_ratio",
    "bytes",
    "end_log_ratio",
    "ends",
    "divergence",
    "compared",
    "joined",
    "cuts",
    "cross_entropy",
    "surprise",
    "loss",
    "matched_loss",
    "unmatched_loss",
    "rollouts",
    "noncanonical",
    "stopped",
    "stopped_length",
    "steps",
    "weight_syncs",
    "time_weight_sync",
    "engine_difference",
    "engine_checked",
    *(f"dropped_{reason}" for reason in DROP_REASONS),
    *(f"time_{phase}" for phase in PHASES),
)
_EXTREMES = ("length", "stopped_length", "engine_difference")


class RunMetrics:
    """Sums and extremes since the last log, for one mode (training, off-policy steps of it, or evaluation).

    `num_tokens` counts prompts and completions since this process began, everything else since the last log.
    `step_time` is the mean time of an optimizer step without the optimizer itself, as TRL reports it; `time/*` are its
    parts.

    Attributes:
        collected: The sums over all ranks that the last log was made of.
    """

    def __init__(self):
        self._num_tokens = 0
        self.collected: dict[str, float] = {}
        # Seconds of the phases that ended within the one that is being timed.
        self._within = 0.0
        self.start_over()

    def start_over(self) -> None:
        """Forget what was added since the last log."""
        self._sums: dict[str, Tensor | float] = defaultdict(float)
        self._extremes: dict[str, list[float]] = {name: [] for name in _EXTREMES}

    def add(self, sums: Mapping[str, Tensor | float]) -> None:
        """Add to sums by name; tensors stay on their device."""
        for name, value in sums.items():
            if name not in _SUMS:
                raise KeyError(f"{name!r} is not a sum that is reported; the sums are {', '.join(_SUMS)}")
            self._sums[name] = self._sums[name] + value

    def add_rollouts(self, batch: MicroBatch) -> None:
        """Count completions: lengths, stops, whether they are canonical, and what is dropped of them and why."""
        rollouts = batch.rollouts
        lengths = [len(rollout.completion_ids) for rollout in rollouts]
        stopped = [len(rollout.completion_ids) for rollout in rollouts if rollout.stopped]
        self._extremes["length"] += lengths
        self._extremes["stopped_length"] += stopped
        self.add(
            {
                "tokens": float(sum(len(rollout.prompt_ids) + len(rollout.completion_ids) for rollout in rollouts)),
                "sampled": float(sum(lengths)),
                "rollouts": float(len(rollouts)),
                "noncanonical": float(sum(not rollout.is_canonical for rollout in rollouts)),
                "stopped": float(len(stopped)),
                "stopped_length": float(sum(stopped)),
                **{f"dropped_{reason}": float(count) for reason, count in batch.dropped.items()},
            }
        )

    def add_differences(self, differences: Sequence[float]) -> None:
        """Take note of how far the log-probs of an engine are from the student's, token by token, in nats."""
        self._extremes["engine_difference"] += differences
        self.add({"engine_difference": sum(differences), "engine_checked": float(len(differences))})

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to `phase`, but for what belongs to another phase within it."""
        start, around, self._within = time.perf_counter(), self._within, 0.0
        yield
        seconds = time.perf_counter() - start
        self.add({f"time_{phase}": seconds - self._within})
        self._within = around + seconds

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """The metrics over all ranks, by their public names; empty if nothing was added on any rank."""
        device = accelerator.device
        values = [float(self._sums[name]) for name in _SUMS]
        lows = [float(min(self._extremes[name], default=torch.inf)) for name in _EXTREMES]
        highs = [float(max(self._extremes[name], default=-torch.inf)) for name in _EXTREMES]
        local = torch.tensor([*values, *lows, *highs], dtype=torch.float64, device=device)
        ranks = accelerator.gather(local[None]).cpu()
        sums = dict(zip(_SUMS, ranks[:, : len(_SUMS)].sum(0).tolist(), strict=True))
        extremes = ranks[:, len(_SUMS) :]
        low = dict(zip(_EXTREMES, extremes[:, : len(_EXTREMES)].amin(0).tolist(), strict=True))
        high = dict(zip(_EXTREMES, extremes[:, len(_EXTREMES) :].amax(0).tolist(), strict=True))
        self.start_over()
        self._num_tokens += int(sums["tokens"])
        self.collected = sums
        return {"num_tokens": self._num_tokens, **_named(sums, low, high)} if sums["rollouts"] else {}


def _named(sums: dict[str, float], low: dict[str, float], high: dict[str, float]) -> dict[str, float]:
    def ratio(part: str, whole: str) -> float:
        return sums[part] / sums[whole] if sums[whole] else 0.0

    metrics = {
        "xtok/coverage": ratio("covered", "sampled"),
        "xtok/noncanonical_ratio": ratio("noncanonical", "rollouts"),
        "xtok/stop_rate": ratio("stopped", "rollouts"),
        "xtok/clipped_advantages": ratio("clipped", "covered"),
        "completions/mean_length": ratio("sampled", "rollouts"),
        "completions/min_length": low["length"],
        "completions/max_length": high["length"],
        "completions/clipped_ratio": 1 - ratio("stopped", "rollouts"),
    }
    for reason in DROP_REASONS:
        metrics[f"xtok/dropped_{reason}"] = ratio(f"dropped_{reason}", "sampled")
    # Left out where there is nothing to average: a zero would read as a perfect match.
    if sums["bytes"]:
        metrics["xtok/reverse_kl_per_byte"] = sums["log_ratio"] / sums["bytes"]
    if sums["matched_loss"] or sums["unmatched_loss"]:
        metrics |= {part: ratio(part, "steps") for part in ("matched_loss", "unmatched_loss")}
    if sums["compared"]:
        metrics["xtok/vocab_jsd"] = sums["divergence"] / sums["compared"]
    if sums["cuts"]:
        metrics["xtok/joined_ratio"] = sums["joined"] / sums["cuts"]
    if sums["cross_entropy"]:
        metrics["xtok/cross_entropy"] = ratio("cross_entropy", "sampled")
    if sums["surprise"]:
        metrics["entropy"] = ratio("surprise", "sampled")
    if sums["ends"]:
        metrics["xtok/reverse_kl_end"] = sums["end_log_ratio"] / sums["ends"]
    if sums["stopped"]:
        metrics["completions/mean_terminated_length"] = ratio("stopped_length", "stopped")
        metrics["completions/min_terminated_length"] = low["stopped_length"]
        metrics["completions/max_terminated_length"] = high["stopped_length"]
    if sums["weight_syncs"]:
        metrics["time/weight_sync"] = ratio("time_weight_sync", "steps")
    if sums["engine_checked"]:
        metrics["sampling/sampling_logp_difference/mean"] = ratio("engine_difference", "engine_checked")
        metrics["sampling/sampling_logp_difference/max"] = high["engine_difference"]
    for phase in PHASES:
        metrics[f"time/{phase}"] = ratio(f"time_{phase}", "steps")
    metrics["step_time"] = sum(metrics[f"time/{phase}"] for phase in PHASES)
    return metrics
