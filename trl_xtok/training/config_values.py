"""Values of training arguments: what the device says of them, and how they are written down."""

from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin


def as_json(value: Any) -> Any:
    """A value of a dictionary of arguments for loading a model, as JSON can hold it."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.to_dict() if isinstance(value, QuantizationConfigMixin) else value


def has_bf16(use_cpu: bool) -> bool:
    """Whether bfloat16 is fast here: float32 is the reference on a CPU, and cards before Ampere only emulate it."""
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
