"""What `segmentation="text"` needs: the student's own canonical tokenizations of its rollouts, scored."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.chunks import merge_units
from ..objectives import sum_by_chunk
from .scoring import pack, to_device
from .window import CanonicalPaths, MicroBatch


def add_canonical_paths(
    batch: MicroBatch,
    score: Callable[[dict[str, Tensor]], Float[Tensor, " tokens"]],
    device: torch.device,
    *,
    always: bool = False,
) -> None:
    """Find the units of `batch` and score the canonical paths through them, for the text correction.

    Rollouts that are canonical need no correction, so their tokens stay outside all units.

    Args:
        batch: Gets its `canonical`.
        score: The student's log-probs of packed completions.
        device: Where the student is.
        always: Whether to ask for log-probs even if none are needed here, since other ranks may need some.
    """
    rows = iter(batch.chunks.tolist())
    units: list[int] = []
    canonical_units: list[int] = []
    differs: list[bool] = []
    others = [rollout for rollout in batch.rollouts if not rollout.is_canonical]
    for rollout in batch.rollouts:
        chunks = [next(rows) for _ in rollout.completion_ids]
        if rollout.is_canonical:
            units += [-1] * len(chunks)
            continue
        regions = rollout.canonical.student_chunks
        merged = merge_units(chunks, regions)
        unit_of_region = dict(zip(regions, merged, strict=True)) | {-1: -1}
        on_canonical = [unit_of_region[region] for region in rollout.canonical.teacher_chunks]
        offset, count = len(differs), max(merged, default=-1) + 1
        sampled_path = _ids_by_unit(rollout.completion_ids, merged, count)
        canonical_path = _ids_by_unit(rollout.canonical.teacher_ids, on_canonical, count)
        differs += (a != b for a, b in zip(sampled_path, canonical_path, strict=True))
        units += (unit + offset if unit >= 0 else -1 for unit in merged)
        canonical_units += (unit + offset if unit >= 0 else -1 for unit in on_canonical)
    if not (others or always):
        return
    prompts = [rollout.prompt_ids for rollout in others] or [[0]]
    packed = pack(prompts, [rollout.canonical.teacher_ids for rollout in others] or [[]], device)
    with torch.no_grad():
        token_logps = score(packed)
    batch.canonical = CanonicalPaths(
        units=to_device(torch.tensor(units, dtype=torch.long), device),
        differ=to_device(torch.tensor(differs, dtype=torch.bool), device),
        logps=sum_by_chunk(
            token_logps, to_device(torch.tensor(canonical_units, dtype=torch.long), device), len(differs)
        ),
    )


def _ids_by_unit(ids: Sequence[int], units: Sequence[int], num_units: int) -> list[list[int]]:
    paths: list[list[int]] = [[] for _ in range(num_units)]
    for token, unit in zip(ids, units, strict=True):
        if unit >= 0:
            paths[unit].append(token)
    return paths
