"""A student whose parameters, gradients and optimizer state FSDP2 shards over the devices of a run.

Whatever reads its weights does so in its forward, on all ranks together.
"""

from dataclasses import replace

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..errors import ModelError
from .scoring import causal_lm, check_head
from .trl_compat import generate_together


def prepare_forward(model: PreTrainedModel | PeftModel, accelerator: Accelerator, *, sharded: bool) -> PreTrainedModel:
    """The transformers model of the student, once it is known how its log-probs are computed.

    Args:
        model: The student, before it is sharded.
        accelerator: Will shard it.
        sharded: Whether it will.

    Raises:
        ModelError: If its log-probs cannot be computed in blocks, or it cannot be sharded here.
    """
    student = causal_lm(model)
    if any(isinstance(parameter, DTensor) for parameter in student.parameters()):
        raise ModelError(
            f"The student ({type(student).__name__}) was sharded as it was loaded (`distributed_config`, `tp_plan`), "
            "and is not gathered here. Load it whole, and set `fsdp=True` to have the trainer shard it."
        )
    if sharded and any(parameter.dtype == torch.int8 for parameter in student.parameters()):
        raise ModelError(
            f"The student ({type(student).__name__}) is in 8 bits, which was never tried with FSDP. Load it in 4 "
            "bits, or without quantization."
        )
    check_head(student, "student")
    if sharded:
        generate_together(student)
        plugin = accelerator.state.fsdp_plugin
        if plugin.mixed_precision_policy is not None:
            # What leaves the forward are log-probs, which half precision would round.
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
    return student
