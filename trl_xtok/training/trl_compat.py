"""Every assumption about the private behaviour of TRL 1.16; each has a contract test in `tests/training/`.

Whatever else the package uses of TRL is public. When TRL changes, this is the file to look at.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from trl.cli.accelerate_config import resolve_accelerate_config_argument
from trl.data_utils import is_conversational
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import TRLExperimentalWarning, is_vllm_available


with warnings.catch_warnings():
    # The warning tells the importer that GKD may change in any release; this file is our answer to that.
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.models.utils import _ForwardRedirection, unwrap_model_for_generation
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import print_prompt_completions_sample, remove_none_values


__all__ = [
    "GKDConfig",
    "GKDTrainer",
    "SFTTrainer",
    "TeacherStandIn",
    "VLLMGeneration",
    "call_through_wrapper",
    "generate_together",
    "gkd_init",
    "is_conversational",
    "is_vllm_available",
    "print_prompt_completions_sample",
    "remove_none_values",
    "resolve_accelerate_config_argument",
    "unwrap_model_for_generation",
]


class TeacherStandIn(nn.Module):
    """What `GKDTrainer.__init__` is given as a teacher.

    It refuses a teacher of another vocabulary size and prepares the one it accepts. So it gets a module without
    parameters that carries the student's configuration, and the real teacher takes its place afterwards.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config


class _MigrationNotice(logging.Filter):
    """Drops the advice to move to `DistillationTrainer`, which refuses teachers with another tokenizer."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "is fully covered by `DistillationTrainer`" not in record.getMessage()


@contextmanager
def gkd_init(args: GKDConfig, quantization_config: BitsAndBytesConfig | None) -> Iterator[None]:
    """Run `GKDTrainer.__init__` with a teacher that it did not load; afterwards `args` are as the user wrote them.

    It raises on `teacher_model_init_kwargs` beside a loaded teacher, so they are hidden from it. It has no argument
    for the student's quantization, which therefore goes through `model_init_kwargs`. It sets `dataset_kwargs`.
    """
    names = ("teacher_model_init_kwargs", "model_init_kwargs", "dataset_kwargs")
    written = {name: getattr(args, name) for name in names}
    logger = logging.getLogger("trl.experimental.gkd.gkd_trainer")
    notice = _MigrationNotice()
    args.teacher_model_init_kwargs = None
    if quantization_config is not None:
        args.model_init_kwargs = {**(args.model_init_kwargs or {}), "quantization_config": quantization_config}
    logger.addFilter(notice)
    try:
        yield
    finally:
        logger.removeFilter(notice)
        for name, value in written.items():
            setattr(args, name, value)


def call_through_wrapper(wrapper: nn.Module, module: nn.Module, function: Callable[[nn.Module], Any]) -> Any:
    """Call `function(module)` inside the forward of `wrapper`.

    There DDP prepares its gradient reduction, and FSDP has gathered the parameters.

    Args:
        wrapper: The module as the trainer hands it over, for example `DistributedDataParallel`.
        module: The module inside `wrapper`, whose own forward is left out; with FSDP2, which wraps nothing, the same.
        function: What to compute instead, with the parameters of `module`. What else it needs it brings along, since
            wrappers cast and move what they are given.
    """
    if wrapper is module and not isinstance(module, FSDPModule):
        return function(module)
    return _ForwardRedirection()(wrapper, module, function, module)


def generate_together(model: PreTrainedModel) -> None:
    """Have `generate` go on until the completions of all ranks are finished, since they gather parameters together.

    Transformers does so for models that it shards itself; of those that Accelerate shards it does not know.
    """
    model._is_fsdp_managed_module = True
