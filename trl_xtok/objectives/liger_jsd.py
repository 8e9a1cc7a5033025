"""Generalised JSD between two models of one vocabulary with Liger's fused linear JSD."""

from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ConfigError
from .event_map import EventMap
from .liger_logps import longest_call, why_not_liger
from .logps import Backend, LMHead, default_block_size, make_plan


def use_liger_jsd(
    backend: Backend,
    hidden: Float[Tensor, "positions student_hidden"],
    student: tuple[LMHead, EventMap],
    teacher: tuple[LMHead, EventMap],
) -> bool:
    """Whether `liger_jsd` is to be used: always with `"liger"`, with `"auto"` on CUDA where it is exact.

    Raises:
        ConfigError: If it is asked for and cannot serve.
    """
    if backend == "torch" or (backend == "auto" and not hidden.is_cuda):
        return False
    problem = _why_not(hidden, student, teacher)
    if problem is not None and backend == "liger":
        raise ConfigError(f"Liger cannot compare these distributions: {problem}. Use the backend 'auto' or 'torch'.")
    return problem is None


def _why_not(hidden: Tensor, *sides: tuple[LMHead, EventMap]) -> str | None:
    whole = all(events.is_whole for _, events in sides)
    if not whole or len({len(head.weight) for head, _ in sides}) > 1:
        return "it compares whole vocabularies of one size only"
    if any(head.bias is not None or head.softcap is not None or head.scale != 1.0 for head, _ in sides):
        return "it knows no bias, soft-cap or scale of the head"
    plan = make_plan(sides[0][0], hidden, 1.0, 1)
    # It divides the slopes by the number of positions before it rounds them.
    return "float16 ends at 6e-8" if plan.dtype == torch.float16 else why_not_liger(hidden, plan)


def liger_jsd(
    student_hidden: Float[Tensor, "positions student_hidden"],
    student_head: LMHead,
    teacher_hidden: Float[Tensor, "positions teacher_hidden"],
    teacher_head: LMHead,
    *,
    beta: float,
    temperature: float,
    block_size: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over the positions of the divergence that `vocab_jsd` computes one by one, for at least one position.

    Liger makes logits of about `block_size` positions at a time, and several tensors of that size; more of them for a
    head that trains, whose gradient it holds once per call.
    """
    weight = student_head.weight if student_head.trains else student_head.weight.detach()
    size = default_block_size(len(weight)) if block_size is None else block_size
    dtype = make_plan(student_head, student_hidden, temperature, size).dtype
    hidden = student_hidden if torch.is_grad_enabled() else student_hidden.detach()
    most = len(hidden) if student_head.trains else longest_call(len(weight), weight.shape[1], size)
    function = import_module("liger_kernel.ops").LigerFusedLinearJSDFunction
    teacher_weight = teacher_head.weight.detach()
    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        pieces = zip(torch.split(hidden, most), torch.split(teacher_hidden.detach(), most), strict=True)
        means = [
            len(ours)
            * function.apply(
                ours,
                weight,
                theirs.to(teacher_weight.dtype),
                teacher_weight,
                None,
                beta,
                -100,
                temperature,
                torch.float32,
            )
            for ours, theirs in pieces
        ]
        return torch.stack(means).sum()
