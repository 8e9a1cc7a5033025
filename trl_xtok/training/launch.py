"""How a run is launched: on one device, or on several with DDP."""

import os
from typing import NoReturn

from accelerate.utils import parse_flag_from_env

from ..errors import ConfigError
from .config import CrossTokenizerGKDConfig


def check_launch(args: CrossTokenizerGKDConfig) -> None:
    """Refuse launchers, and settings of theirs in the environment, that this trainer cannot work under.

    Raises:
        ConfigError: Naming what the run is launched with.
    """
    sharding = {
        "DeepSpeed": args.deepspeed_plugin is not None,
        "FSDP": args.fsdp or args.fsdp_config or parse_flag_from_env("ACCELERATE_USE_FSDP"),
        "tensor or context parallelism": args.parallelism_config is not None
        or parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
    }
    for launcher, is_used in sharding.items():
        if is_used:
            refuse_launcher(launcher)
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise ConfigError(
            f"The run is launched with `torch.compile` (ACCELERATE_DYNAMO_BACKEND={backend!r}), but the forward of "
            "this trainer goes past the compiled model. Launch it without `--dynamo_backend`."
        )


def refuse_launcher(launcher: str) -> NoReturn:
    """Refuse a launcher that shards parameters or sequences.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"The run is launched with {launcher}, and this trainer gathers neither parameters nor sequences from "
        "several devices. Launch it with DDP (`accelerate launch --multi_gpu`) or on one device."
    )
