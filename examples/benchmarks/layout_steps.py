"""Layouts of a teacher, a student and its rollouts on GPUs, and the time of a step, from shapes and assumptions."""

import math
from dataclasses import dataclass, field

from trl_xtok.errors import ConfigError
from trl_xtok.planning.gpus import GIB, find_gpu

from .layout_models import Shape


GPU_BYTES = find_gpu("H100").bytes


def _assumed(value: float, meaning: str) -> float:
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What is not computed but assumed of one H100 SXM and of what runs on it; beside each stands what it is."""

    bf16_flops: float = _assumed(989e12, "operations per second in bfloat16, without sparsity (data sheet)")
    fp8_flops: float = _assumed(1979e12, "the same in fp8 (data sheet)")
    bandwidth: float = _assumed(3.35e12, "bytes per second of a GPU's memory (data sheet)")
    train_mfu: float = _assumed(0.35, "share of `bf16_flops` that training reaches")
    score_mfu: float = _assumed(0.45, "share of `bf16_flops` that reading prompts reaches, inside one machine")
    fp8_mfu: float = _assumed(0.35, "share of `fp8_flops` that reading prompts reaches")
    decode_share: float = _assumed(0.5, "share of `bandwidth` that decoding reaches")
    copy_rate: float = _assumed(10e9, "bytes per second of new weights into an engine, colocated or over NCCL")
    nvlink: float = _assumed(450e9, "bytes per second into a GPU from the others of its machine (data sheet)")
    fabric: float = _assumed(50e9, "the same from other machines: a card of 400 Gbit/s for each GPU")
    teacher_ratio: float = _assumed(1.0, "teacher tokens for each student token; `trl-xtok audit` says it")
    teacher_utilization: float = _assumed(0.85, "share of its memory that an engine takes, for the teacher")
    rollout_utilization: float = _assumed(0.9, "the same for an engine that only samples")
    colocated_utilization: float = _assumed(0.55, "the same for an engine beside a student")
    engine_overhead: float = _assumed(3 * GIB, "bytes that an engine takes for CUDA, graphs and activations")


@dataclass(frozen=True, slots=True)
class Layout:
    """Who sits where.

    Attributes:
        is_fp8: Whether the teacher's matrices are in fp8; bfloat16 otherwise.
        tensor_parallel: GPUs of one of the teacher's servers.
        servers: Servers of the teacher.
        student: GPUs that train the student, each a copy of it.
        rollouts: GPUs that only sample; with 0 those of the student do.
    """

    is_fp8: bool
    tensor_parallel: int
    servers: int
    student: int
    rollouts: int = 0

    @property
    def teacher(self) -> int:
        """GPUs of the teacher."""
        return self.tensor_parallel * self.servers

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.teacher + self.student + self.rollouts


LAYOUTS = (
    Layout(is_fp8=False, tensor_parallel=4, servers=1, student=4),
    Layout(is_fp8=True, tensor_parallel=2, servers=2, student=4),
    Layout(is_fp8=True, tensor_parallel=2, servers=1, student=4, rollouts=2),
    Layout(is_fp8=False, tensor_parallel=4, servers=2, student=8),
    Layout(is_fp8=True, tensor_parallel=2, servers=4, student=8),
    Layout(is_fp8=False, tensor_parallel=4, servers=4, student=16),
    Layout(is_fp8=True, tensor_parallel=2, servers=8, student=16),
    Layout(is_fp8=False, tensor_parallel=4, servers=8, student=32),
    Layout(is_fp8=True, tensor_parallel=2, servers=16, student=32),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Models, texts and assumptions.

    Attributes:
        student: The student.
        teacher: The teacher.
        prompt: Tokens of every prompt.
        completion: Tokens of every completion.
        assumed: What is assumed.
    """

    student: Shape
    teacher: Shape
    prompt: int = 512
    completion: int = 1536
    assumed: Assumptions = Assumptions()

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt + self.completion

    def cache_bytes(self, shape: Shape, utilization: float, parallel: int = 1, *, is_fp8: bool = False) -> float:
        """Bytes that a GPU of an engine has left for keys and values."""
        weights = shape.weight_bytes(1 if is_fp8 else 2) / parallel
        return utilization * GPU_BYTES - weights - self.assumed.engine_overhead

    def completions_at_once(self, layout: Layout) -> int:
        """Completions whose keys and values one GPU of the rollouts has room for."""
        share = self.assumed.rollout_utilization if layout.rollouts else self.assumed.colocated_utilization
        return math.floor(self.cache_bytes(self.student, share) / (self.length * self.student.kv_bytes()))


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of the phases of an optimizer step, which follow one another."""

    rollouts: float
    weights: float
    scoring: float
    training: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.rollouts + self.weights + self.scoring + self.training


def step_time(plan: Plan, layout: Layout, batch: int) -> Step:
    """What a step takes in which `batch` completions are sampled, scored and trained on.

    Raises:
        ConfigError: If a GPU of the rollouts has no room for a single one of them.
    """
    student, assumed = plan.student, plan.assumed
    rate = assumed.fp8_flops * assumed.fp8_mfu if layout.is_fp8 else assumed.bf16_flops * assumed.score_mfu
    tokens = batch * plan.length
    scored = tokens * assumed.teacher_ratio * plan.teacher.forward_flops(plan.length * assumed.teacher_ratio / 2)
    # Forward, forward again because of checkpointing, and the gradients of the activations.
    body, ends = student.forward_flops(plan.length / 2, head=False), 2 * student.head * batch * plan.completion
    trained = 3 * (tokens * body + ends)
    return Step(
        rollouts=_rollout_time(plan, layout, batch),
        weights=student.weight_bytes() / assumed.copy_rate,
        scoring=scored / (layout.teacher * rate),
        training=trained / (layout.student * assumed.bf16_flops * assumed.train_mfu),
    )


def _rollout_time(plan: Plan, layout: Layout, batch: int) -> float:
    student, assumed = plan.student, plan.assumed
    rows = math.ceil(batch / (layout.rollouts or layout.student))
    at_once = min(rows, plan.completions_at_once(layout))
    if at_once < 1:
        raise ConfigError(
            f"An engine with {student.name} has no room for the keys and values of a text of {plan.length} tokens: "
            f"its weights take {student.weight_bytes() / GIB:.1f} GiB. Shorten the texts, or raise "
            "`colocated_utilization` or `rollout_utilization` with `--assume`."
        )
    context, rate = plan.prompt + plan.completion / 2, assumed.bf16_flops * assumed.score_mfu
    moved = student.weight_bytes() + at_once * context * student.kv_bytes()
    of_a_token = max(
        moved / (assumed.bandwidth * assumed.decode_share), at_once * student.forward_flops(context) / rate
    )
    prompts = rows * plan.prompt * student.forward_flops(plan.prompt / 2, head=False) / rate
    return prompts + math.ceil(rows / at_once) * plan.completion * of_a_token
