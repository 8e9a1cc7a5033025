"""A student whose parameters, gradients and optimizer state FSDP2 shards over the devices of a run.

Whatever reads its weights does so in its forward, on all ranks together.
"""

from dataclasses import replace

from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel

from .scoring import causal_lm, check_head
from .trl_compat import generate_together


def prepare_forward(model: PreTrainedModel | PeftModel, accelerator: Accelerator, *, sharded: bool) -> PreTrainedModel:
    """The transformers model of the student, once it is known how its log-probs are computed.

    Args:
        model: The student, before it is sharded.
        accelerator: Will shard it.
        sharded: Whether it will.

    Raises:
        ModelError: If its log-probs cannot be computed in blocks.
    """
    student = causal_lm(model)
    # With `cpu_ram_efficient_loading` the others have no weights yet.
    if not sharded or accelerator.is_main_process:
        check_head(student, "student")
    if sharded:
        generate_together(student)
        plugin = accelerator.state.fsdp_plugin
        if plugin.mixed_precision_policy is not None:
            # What leaves the forward are log-probs, which half precision would round.
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
    return student
