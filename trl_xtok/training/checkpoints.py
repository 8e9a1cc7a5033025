"""Checkpoints: a run goes on from the last one that was written to its end, never from one that was cut off."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from torch import nn
from transformers import TrainerState
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from ..errors import CacheError, CheckpointError, ServerError
from .trl_compat import GKDTrainer


logger = logging.getLogger(__name__)

# What a run cannot go on without as if nothing had happened. The parent writes the state last of all.
_NEEDED = (OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME)
# FSDP has another name for it, and DeepSpeed a file that names its folder.
_NAMES = {OPTIMIZER_NAME: (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, "latest")}


class ResumableGKDTrainer(GKDTrainer):
    """`GKDTrainer` that tells checkpoints which a run was killed in the midst of from complete ones."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: Folder of a checkpoint, or `True` for the last complete one in `args.output_dir`.
                `None` takes `args.resume_from_checkpoint`.
            *args: Those of the parent.
            **kwargs: Those of the parent.

        Raises:
            CheckpointError: If the checkpoint, or every one in the folder, was cut off while it was written.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(self.args.output_dir)
        elif resume_from_checkpoint:
            resume_from_checkpoint = check_complete(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Where in the data to begin: epochs that are over, and batches of the next that were trained on.

        The parent finds both from the number of batches of an epoch. A stream has none before it ends, so what the
        checkpoint says of the epoch is read, in which each batch counts as one of all that the run was to take.
        """
        began = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or not isinstance(self.train_dataset, IterableDataset):
            return began
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
        passes, part = divmod(saved.epoch or 0.0, 1)
        steps = min(round(part * saved.max_steps), saved.global_step)
        return int(passes), 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save one; a file of another run in the same folder must not make it look complete before it is."""
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    @contextmanager
    def _keeping_finished_steps(self) -> Iterator[None]:
        """Where there are no scores in the midst of a run, save a checkpoint of the steps that are done."""
        try:
            yield
        except (CacheError, ServerError) as error:
            if self.is_in_train and self.state.global_step > 0:
                folder = Path(self._get_output_dir(None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                if what_lacks(str(folder)):
                    self._save_checkpoint(self.model, None)
                error.add_note(
                    f"The {self.state.global_step} steps that are done are saved in {folder}. To go on from there, "
                    "set `resume_from_checkpoint=True`."
                )
            raise

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random state of this rank, and wait for those of the others: the state comes next, and last."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


def last_complete(folder: str) -> str:
    """The last checkpoint in a folder that is complete; later ones that are not are named in a warning.

    Raises:
        CheckpointError: If there is none.
    """
    checkpoints = sort_checkpoints(folder) if Path(folder).is_dir() else []
    for checkpoint in reversed(checkpoints):
        if not (reason := what_lacks(checkpoint)):
            return checkpoint
        logger.warning("Skipping %s: %s. It was not written to its end, or not to go on from.", checkpoint, reason)
    raise CheckpointError(
        f"There is no checkpoint to go on from in {folder!r}: {len(checkpoints)} found, none of them complete. Leave "
        "`resume_from_checkpoint` out to start from the beginning, or set `output_dir` to the folder of the run."
    )


def check_complete(checkpoint: str) -> str:
    """The folder of a checkpoint, if it is complete.

    Raises:
        CheckpointError: If it is not.
    """
    if not Path(checkpoint).is_dir():
        raise CheckpointError(
            f"There is no folder {checkpoint!r} to go on from. Give that of a checkpoint, or "
            "`resume_from_checkpoint=True` for the last complete one in `output_dir`."
        )
    if reason := what_lacks(checkpoint):
        raise CheckpointError(
            f"{checkpoint!r} is no checkpoint that a run can go on from: {reason}. It was not written to its end, or "
            "with `save_only_model=True`. Give another one, or `resume_from_checkpoint=True` for the last complete "
            "one in `output_dir`."
        )
    return checkpoint


def what_lacks(checkpoint: str) -> str | None:
    """What a checkpoint lacks for a run to go on from it, or `None` if nothing."""
    folder = Path(checkpoint)
    if missing := [name for name in _NEEDED if not any((folder / n).is_file() for n in _NAMES.get(name, (name,)))]:
        return f"{' and '.join(missing)} missing"
    try:
        json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_text())
    except ValueError as error:
        return f"{TRAINER_STATE_NAME} is cut off ({error})"
    return None
