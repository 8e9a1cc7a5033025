"""Completions -> rollouts: each is aligned, and its teacher asked for scores, while others are still being written."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ..alignment.aligner import TokenizerAligner
from ..errors import DataError
from .data import unpad
from .metrics import RunMetrics
from .teachers import Teacher, expect_by_teacher
from .window import Rollout


class WindowAligner:
    """Aligns the completions of an optimizer step with the teacher's tokens and with the student's canonical ones.

    Args:
        aligners: For the student and each teacher.
        batches: What [`PromptCollator`] returned.
        metrics: Take the time.
        teachers: Each is told of a completion as soon as it is added; empty if none will score them.
        rows: So many rows of the batches count, all if `None`; the completions of the others are taken as empty.

    Raises:
        DataError: If there are several teachers and a batch does not say which one scores which row.
    """

    def __init__(
        self,
        aligners: Sequence[TokenizerAligner],
        batches: Sequence[Mapping[str, Tensor]],
        metrics: RunMetrics,
        *,
        teachers: Sequence[Teacher] = (),
        rows: int | None = None,
    ):
        self._aligners, self._metrics, self._teachers = aligners, metrics, teachers
        self._sizes = [len(batch["prompts"]) for batch in batches]
        self._prompts = [prompts for batch in batches for prompts in self._read(batch)]
        self._counted = len(self._prompts) if rows is None else rows
        self._rollouts: dict[int, Rollout] = {}

    def add(self, completions: Mapping[int, list[int]]) -> None:
        """Take completions, by the place of their prompt; a later one takes the place of an earlier one."""
        with self._metrics.timed("align"):
            added = {place: self._align(place, ids) for place, ids in completions.items()}
        self._rollouts |= added
        expect_by_teacher([[*added.values()]], self._teachers)

    def finish(self, written: Sequence[list[int]]) -> list[list[Rollout]]:
        """The rollouts of each batch.

        Args:
            written: All completions; those that were added already are not aligned again.
        """
        counted = (ids if place < self._counted else [] for place, ids in enumerate(written))
        self.add({place: ids for place, ids in enumerate(counted) if not self._has(place, ids)})
        rollouts = (self._rollouts[place] for place in range(len(self._prompts)))
        return [[next(rollouts) for _ in range(size)] for size in self._sizes]

    def _has(self, place: int, completion_ids: list[int]) -> bool:
        return place in self._rollouts and self._rollouts[place].completion_ids == completion_ids

    def _read(self, batch: Mapping[str, Tensor]) -> Iterator[tuple[list[int], list[int], int]]:
        """Both prompts of each row, and the number of its teacher."""
        prompts = unpad(batch["prompts"], batch["prompt_attention_mask"])
        teacher_prompts = unpad(batch["teacher_prompts"], batch["teacher_prompt_attention_mask"])
        several = len(self._aligners) > 1
        if several and "teacher_numbers" not in batch:
            raise DataError(
                f"There are {len(self._aligners)} teachers, but a batch holds {', '.join(batch)} and no "
                "`teacher_numbers`. A data collator of your own must say which teacher scores each row: 0 for the "
                "first one of `teacher_model`."
            )
        numbers = batch["teacher_numbers"].tolist() if several else [0] * len(batch["prompts"])
        return zip(prompts, teacher_prompts, numbers, strict=True)

    def _align(self, place: int, completion_ids: list[int]) -> Rollout:
        prompt_ids, teacher_prompt_ids, number = self._prompts[place]
        aligner = self._aligners[number]
        completion_ids = completion_ids if place < self._counted else []
        alignment = aligner.align(completion_ids)
        return Rollout(
            prompt_ids,
            teacher_prompt_ids,
            completion_ids,
            alignment=alignment,
            canonical=aligner.canonical(completion_ids),
            blank_chunks=aligner.blank_chunks(completion_ids, alignment),
            stopped=bool(completion_ids) and completion_ids[-1] in aligner.student_stop_ids,
            teacher=number,
        )
