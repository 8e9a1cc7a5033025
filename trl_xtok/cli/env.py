"""`trl-xtok env`: what to paste into a bug report."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..errors import XTokError
from .notices import quiet_notices


# As they are called on PyPI.
_PACKAGES = (
    *("trl-xtok", "trl", "transformers", "tokenizers", "torch", "accelerate", "datasets", "peft", "huggingface_hub"),
    *("bitsandbytes", "liger-kernel", "triton", "deepspeed", "vllm"),
)


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "env",
        help="versions and hardware, to paste into a bug report",
        description="Print the versions of everything that matters and what the hardware can do, to paste into a bug "
        "report.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    quiet_notices()
    lines = {"Platform": platform.platform(), "Python": platform.python_version()}
    lines |= {name: _version(name) for name in _PACKAGES}
    lines |= _hardware()
    print("\nCopy-paste the following information when reporting an issue:\n")
    print("\n".join(f"- {name}: {value}" for name, value in lines.items()))
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware() -> dict[str, str]:
    import torch

    accelerator = torch.accelerator.current_accelerator()
    device = torch.device("cpu") if accelerator is None else accelerator
    names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    devices = [f"{one.name} ({one.total_memory / 2**30:.1f} GiB)" for one in names]
    return {
        "Device": ", ".join(devices) or f"{device.type}, {torch.get_num_threads()} threads",
        "CUDA of torch": torch.version.cuda or "none",
        "Precision by default": _precision(),
        "4-bit models": _four_bit(device),
        "Liger kernels": _liger(device),
        "Accelerate configuration": _accelerate_configuration(),
    }


def _precision() -> str:
    from .. import CrossTokenizerGKDConfig

    args = CrossTokenizerGKDConfig(output_dir="unused")
    return "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"


def _four_bit(device: Any) -> str:
    import torch

    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        dequantize_4bit(*quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4"))
    # A native library fails in many ways, and this command is to say so.
    except Exception as error:
        return f"not usable: {error}"
    return f"usable on {device.type}"


def _liger(device: Any) -> str:
    import torch

    from ..objectives import token_logps

    hidden, head = torch.ones(2, 16, device=device), torch.ones(32, 16, device=device)
    try:
        token_logps(hidden, head, torch.zeros(2, dtype=torch.int64, device=device), backend="liger")
    except XTokError as error:
        return f"not usable: {error}"
    return f"usable on {device.type}"


def _accelerate_configuration() -> str:
    from accelerate.commands.config import default_config_file

    path = Path(default_config_file)
    return (
        "not found" if not path.is_file() else "\n  " + path.read_text(encoding="utf-8").strip().replace("\n", "\n  ")
    )
