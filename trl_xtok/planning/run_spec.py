"""A run, as far as its memory goes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ConfigError
from .models import ModelSpec


# Bytes of state per trained parameter, for the optimizers whose state is known here.
OPTIMIZER_STATE = {
    "adamw_torch": 8.0,
    "adamw_torch_fused": 8.0,
    "adamw_bnb_8bit": 2.03,
    "adamw_8bit": 2.03,
    "paged_adamw_8bit": 2.03,
    "paged_adamw": 8.0,
    "paged_adamw_32bit": 8.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.02,
    "paged_lion_8bit": 1.02,
    "sgd": 0.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
}
# They make a copy of everything that they update; the fused and 8-bit ones work in place.
_COPYING = ("adamw_torch", "rmsprop", "adagrad")
# Their kernels take no sharded parameters.
_OF_BITSANDBYTES = ("bnb", "8bit", "paged", "lion")
_COMPARING = ("exact_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd")


def refuse_unsharded(optim: str) -> None:
    """Refuse an optimizer that does not update sharded parameters.

    Raises:
        ConfigError: If it is one.
    """
    if any(part in optim for part in _OF_BITSANDBYTES):
        raise ConfigError(
            f"`optim={optim!r}` is one of bitsandbytes, whose optimizers do not update sharded parameters. With FSDP, "
            "set `optim='adamw_torch_fused'`: its state is sharded."
        )


@dataclass(frozen=True, slots=True)
class RunSpec:
    """A run, as far as its memory goes. The names are those of the training arguments.

    Attributes:
        student: The student.
        teacher: The teacher; `None` if a server has it.
        per_device_train_batch_size: Completions of a micro-batch.
        gradient_accumulation_steps: Micro-batches of an optimizer step.
        generation_batch_size: Completions sampled together; `None` is the micro-batch.
        prompt_length: Longest prompt in student tokens.
        max_new_tokens: Longest completion in student tokens.
        teacher_ratio: Teacher tokens for each student token; an audit says it.
        objective: What is minimised; `auto` is counted as `chunk_rkl`.
        block_size: Tokens whose logits exist at a time.
        autocast: Dtype of autocast around the student, if there is one.
        gradient_checkpointing: Arguments of gradient checkpointing; `None` for none.
        optim: The optimizer.
        offload_teacher: Whether the teacher is away while it does not score.
        samples: Whether the student samples here; else a server does.
        num_processes: Devices, each with a copy of everything (DDP) unless `fsdp` is set.
        fsdp: Whether the student is sharded over the devices (FSDP2).
        sync_each_batch: Whether a sharded student's gradients are reduced after every micro-batch (one of the
            `gradient_accumulation_kwargs` of `accelerator_config`); else every device holds all of them in between.
        on_gpu: Whether CUDA takes memory of its own.
    """

    student: ModelSpec
    teacher: ModelSpec | None
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    generation_batch_size: int | None = None
    prompt_length: int = 512
    max_new_tokens: int = 128
    teacher_ratio: float = 1.0
    objective: str = "chunk_rkl"
    block_size: int | None = None
    autocast: torch.dtype | None = None
    gradient_checkpointing: Mapping[str, Any] | None = field(default_factory=dict[str, Any])
    optim: str = "adamw_torch_fused"
    offload_teacher: bool = False
    samples: bool = True
    num_processes: int = 1
    fsdp: bool = False
    sync_each_batch: bool = False
    on_gpu: bool = True

    def __post_init__(self):
        names = ("per_device_train_batch_size", "gradient_accumulation_steps", "prompt_length", "max_new_tokens")
        for name in (*names, "num_processes", "generation_batch_size", "block_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.teacher_ratio > 0:
            raise ConfigError(f"`teacher_ratio` must be positive, got {self.teacher_ratio}.")
        if self.optim not in OPTIMIZER_STATE:
            raise ConfigError(
                f"The memory of `optim={self.optim!r}` is not known here. Known are {', '.join(OPTIMIZER_STATE)}."
            )
        if self.fsdp:
            self._check_fsdp()

    def _check_fsdp(self) -> None:
        if self.num_processes == 1:
            raise ConfigError(
                "`fsdp` shards the student over several devices, but `num_processes` is 1. Set it to the number of "
                "GPUs, or leave `fsdp` out."
            )
        if self.student.bits == 8:
            raise ConfigError(
                "With `fsdp` the memory of a student in 8 bits is not known here. Load it in 4 bits, or not quantized."
            )
        refuse_unsharded(self.optim)

    @property
    def compares(self) -> bool:
        """Whether next-token distributions are compared."""
        return self.objective in _COMPARING

    @property
    def state_per_parameter(self) -> float:
        """Bytes of optimizer state for each trained parameter."""
        return OPTIMIZER_STATE[self.optim]

    @property
    def shards(self) -> int:
        """Devices that share the student out."""
        return self.num_processes if self.fsdp else 1

    @property
    def copies_in_step(self) -> bool:
        """Whether the optimizer makes a copy of everything that it updates."""
        return self.optim in _COPYING
