"""How a run is launched: on one device, or on several with DDP or FSDP2."""

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
        "tensor or context parallelism": args.parallelism_config is not None
        or parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
    }
    for launcher, is_used in sharding.items():
        if is_used:
            refuse_launcher(launcher)
    _check_fsdp(args)
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise ConfigError(
            f"The run is launched with `torch.compile` (ACCELERATE_DYNAMO_BACKEND={backend!r}), but the forward of "
            "this trainer goes past the compiled model. Launch it without `--dynamo_backend`."
        )


def _check_fsdp(args: CrossTokenizerGKDConfig) -> None:
    settings = args.fsdp_config or {}
    if not args.fsdp and settings:
        raise ConfigError(
            f"`fsdp_config={settings!r}` has no effect without `fsdp`. Set `fsdp=True`, or leave it out."
        )
    if settings.get("xla"):
        refuse_launcher("FSDP on XLA")
    if not (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return
    if fsdp_version(args) != 2:
        refuse_launcher("FSDP of version 1")
    if args.reloads_weights:
        raise ConfigError(
            "The run is launched with FSDP, and `vllm_weight_sync='reload'` saves the weights that one process has. "
            "Set `vllm_weight_sync='nccl'`, or leave `use_vllm` out."
        )


def fsdp_version(args: CrossTokenizerGKDConfig) -> int:
    """That of the arguments, else that of the launcher."""
    if args.fsdp:
        return args.fsdp_plugin_args["fsdp_version"]
    return int(os.environ.get("FSDP_VERSION", "1"))


def refuse_launcher(launcher: str) -> NoReturn:
    """Refuse a launcher that shards parameters or sequences in a way that this trainer does not know.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"The run is launched with {launcher}, and this trainer gathers neither parameters nor sequences from "
        "several devices that way. Launch it with DDP (`accelerate launch --multi_gpu`), with FSDP2 "
        "(`--use_fsdp --fsdp_version 2`), or on one device."
    )
