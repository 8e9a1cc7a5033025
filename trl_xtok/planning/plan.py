"""Peak memory of a run on one device, item by item and phase by phase, and the largest batch that fits a GPU."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig

from ..objectives.jsd_block import BLOCK_BYTES
from ..objectives.logps import default_block_size
from .gpus import GIB, GPU, GPUS
from .phases import Peak, Walk, WeightlessModel
from .run_spec import RunSpec


# What CUDA and its libraries take before the first tensor, and the share that the allocator cannot use. Assumed.
CONTEXT_BYTES, ALLOCATOR_LOSS = GIB // 2, 0.05
# Between and beyond these batch sizes memory is taken to grow in a straight line.
_SUPPORT = (1, 16)
_MOST = 4096
ITEMS = (
    "student weights",
    "trained weights",
    "teacher weights",
    "optimizer state",
    "gradients",
    "gathered weights",
    "activations",
    "loss blocks",
    "KV cache",
    "rollout logits",
    "teacher states",
    "DDP buckets",
    "overhead",
)
PHASES = ("rollout", "teacher", "student", "optimizer")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run needs on each device.

    Attributes:
        phases: Phase -> item -> bytes.
        gpus: The cards that were asked about.
        largest_batch: Name of a card -> the largest `per_device_train_batch_size` that fits; 0 if not even 1 does.
        batch_size: The one that `phases` is about.
        num_processes: Devices that need this each.
        fsdp: Whether they share the student out.
        notes: What the figures hold for.
    """

    phases: Mapping[str, Mapping[str, int]]
    gpus: tuple[GPU, ...]
    largest_batch: Mapping[str, int]
    batch_size: int
    num_processes: int
    fsdp: bool
    notes: tuple[str, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Phase -> bytes."""
        return {phase: sum(items.values()) for phase, items in self.phases.items()}

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.totals, key=self.totals.__getitem__)

    @property
    def peak(self) -> int:
        """The most bytes that one device needs."""
        return self.totals[self.peak_phase]

    def fits(self, gpu: GPU) -> bool:
        """Whether there is room on this GPU."""
        return self.peak <= gpu.bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; everything is in bytes."""
        return {
            "batch_size": self.batch_size,
            "num_processes": self.num_processes,
            "fsdp": self.fsdp,
            "peak_bytes": self.peak,
            "peak_phase": self.peak_phase,
            "phases": {phase: dict(items) for phase, items in self.phases.items()},
            "gpus": {
                gpu.name: {
                    "bytes": gpu.bytes,
                    "fits": self.fits(gpu),
                    "largest_batch": self.largest_batch[gpu.name],
                }
                for gpu in self.gpus
            },
            "notes": list(self.notes),
        }


def plan_memory(run: RunSpec, gpus: Sequence[GPU] = tuple(GPUS.values())) -> MemoryPlan:
    """Peak memory of a run, from configurations alone; takes seconds and next to no memory.

    Both models are walked through with tensors without content.

    Args:
        run: The run.
        gpus: For which to find the largest batch; none spares two walks.

    Raises:
        ModelError: If a model cannot be walked through, as those whose layers choose experts by values.
    """
    student = WeightlessModel(run.student, run.autocast, shards=run.shards)
    teacher = None if run.teacher is None else WeightlessModel(run.teacher, trains=False)
    support: dict[int, dict[str, dict[str, int]]] = {}
    for size in {run.per_device_train_batch_size, *(_SUPPORT if gpus else ())}:
        support[size] = _phases(replace(run, per_device_train_batch_size=size), student, teacher)
    needs = {size: [sum(items.values()) for items in phases.values()] for size, phases in support.items()}
    return MemoryPlan(
        phases=support[run.per_device_train_batch_size],
        gpus=tuple(gpus),
        largest_batch={gpu.name: _largest_batch(needs, gpu) for gpu in gpus},
        batch_size=run.per_device_train_batch_size,
        num_processes=run.num_processes,
        fsdp=run.fsdp,
        notes=tuple(_notes(run)),
    )


def _largest_batch(needs: Mapping[int, Sequence[int]], gpu: GPU) -> int:
    """The largest batch size whose phases all fit, from what they need at a few sizes."""
    sizes = [size for size in sorted(needs) if size in _SUPPORT]

    def need(size: int) -> float:
        right = next((known for known in sizes[1:] if known >= size), sizes[-1])
        left = sizes[sizes.index(right) - 1]
        ahead = (size - left) / (right - left)
        return max(low + ahead * (high - low) for low, high in zip(needs[left], needs[right], strict=True))

    fits, too_large = 0, _MOST + 1
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        fits, too_large = (middle, too_large) if need(middle) <= gpu.bytes else (fits, middle)
    return fits


def _phases(run: RunSpec, student: WeightlessModel, teacher: WeightlessModel | None) -> dict[str, dict[str, int]]:
    rows = run.per_device_train_batch_size
    walk = Walk(rows, run.prompt_length, run.max_new_tokens, _block_bytes(run, run.student.config))
    rollouts = student.generate(replace(walk, rows=run.generation_batch_size or rows)) if run.samples else None
    trained = student.train(
        walk,
        checkpointing=run.gradient_checkpointing,
        passes=run.gradient_accumulation_steps,
        sync_each_batch=run.sync_each_batch,
    )
    always = {
        "student weights": student.frozen,
        "trained weights": student.trained,
        "optimizer state": int(student.parameters * run.state_per_parameter),
        "DDP buckets": student.trained if run.num_processes > 1 and not run.fsdp else 0,
    }
    # What a rollout leaves gathered, up to the end of the next backward.
    gathered = {"gathered weights": student.stays_gathered if run.samples else 0}
    weights, states, scored = 0, dict[str, int](), dict[str, int]()
    if teacher is not None and run.teacher is not None:
        weights, states, scored = _scoring(run, teacher, run.teacher.config)
    waiting = {"teacher weights": 0 if run.offload_teacher else weights}
    updated = student.trained * (2 if run.copies_in_step else 1)
    phases = {
        "rollout": always | waiting | ({} if rollouts is None else _items(rollouts)),
        "teacher": always | {"teacher weights": weights} | gathered | states | scored,
        "student": always | waiting | states | _items(trained),
        "optimizer": always | waiting | {"gradients": updated},
    }
    return {name: _finish(items, on_gpu=run.on_gpu) for name, items in phases.items()}


def _scoring(
    run: RunSpec, teacher: WeightlessModel, config: PreTrainedConfig
) -> tuple[int, dict[str, int], dict[str, int]]:
    """The teacher's weights, what is kept of what it says, and what it takes to say it."""
    walk = Walk(
        run.per_device_train_batch_size,
        math.ceil(run.prompt_length * run.teacher_ratio),
        math.ceil(run.max_new_tokens * run.teacher_ratio),
        _block_bytes(run, config),
    )
    return teacher.frozen, {"teacher states": _state_bytes(run, walk)}, _items(teacher.score(walk))


def _items(peak: Peak) -> dict[str, int]:
    return {"activations": peak.activations, **peak.parts}


def _finish(items: Mapping[str, int], *, on_gpu: bool) -> dict[str, int]:
    """All items in their order, with what the device takes for itself."""
    overhead = CONTEXT_BYTES + int(ALLOCATOR_LOSS * sum(items.values())) if on_gpu else 0
    return {name: overhead if name == "overhead" else items.get(name, 0) for name in ITEMS}


def _block_bytes(run: RunSpec, config: PreTrainedConfig) -> int:
    """Logits of a block, with a copy in half precision where they are multiplied in it."""
    rows = config.get_text_config().vocab_size
    size = 4 * rows * (default_block_size(rows) if run.block_size is None else run.block_size)
    in_half = run.autocast is not None or (run.teacher is not None and run.teacher.dtype.itemsize == 2)
    logits = size * 3 // 2 if in_half else size
    if not run.compares or run.teacher is None:
        return logits
    largest = max(run.student.config.get_text_config().vocab_size, run.teacher.config.get_text_config().vocab_size)
    return max(logits, BLOCK_BYTES if run.block_size is None else 4 * largest * run.block_size)


def _state_bytes(run: RunSpec, walk: Walk) -> int:
    """The teacher's hidden states, one per chunk at most, of a micro-batch and the next one, or of the whole step."""
    if not run.compares or run.teacher is None:
        return 0
    micro_batches = run.gradient_accumulation_steps if run.offload_teacher else min(run.gradient_accumulation_steps, 2)
    chunks = min(walk.completion, run.max_new_tokens) * walk.rows * micro_batches
    return chunks * run.teacher.config.get_text_config().hidden_size * run.teacher.dtype.itemsize


def _notes_on_shards(run: RunSpec) -> Iterator[str]:
    whole = "" if run.teacher is None else ", and all of the teacher"
    yield (
        f"FSDP2: each of the {run.num_processes} devices holds its share of the student's weights, gradients and "
        f"optimizer state{whole}. `gathered weights` are the layers that are whole at the time."
    )
    if run.student.bits is not None:
        yield "Weights in 4 bits are not sharded: each device holds all of them."
    if run.gradient_accumulation_steps > 1 and not run.sync_each_batch:
        yield (
            "Between the micro-batches of a step each device holds all gradients; with "
            "`accelerator_config={'gradient_accumulation_kwargs': {'sync_each_batch': True}}` it holds its share."
        )
    if run.samples:
        yield "Sampling with `generate` gathers every layer anew for each token, which is slow; see `use_vllm`."


def _notes(run: RunSpec) -> Iterator[str]:
    if run.fsdp:
        yield from _notes_on_shards(run)
    elif run.num_processes > 1:
        yield (
            f"DDP: each of the {run.num_processes} devices holds both models and all of this; more devices make a "
            "step larger, not a model's share smaller."
        )
    if run.teacher is None:
        yield "The teacher is behind a server, and takes no memory here."
    if run.objective == "auto":
        yield "`objective='auto'` is counted as `chunk_rkl`, which it is for two vocabularies."
    if run.on_gpu:
        yield (
            f"`overhead` is assumed: {CONTEXT_BYTES / GIB:.1f} GiB for CUDA and {ALLOCATOR_LOSS:.0%} for what its "
            "allocator cannot use. The rest was compared with measured memory on a CPU; not run on real hardware."
        )
