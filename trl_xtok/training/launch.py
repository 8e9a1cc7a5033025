"""How a run is launched: on one device, or on several with DDP, FSDP2 or DeepSpeed."""

import os
from typing import NoReturn

from accelerate.utils import DistributedType, parse_flag_from_env

from ..errors import ConfigError
from ..planning.run_spec import refuse_unsharded
from .config import CrossTokenizerGKDConfig


def check_launch(args: CrossTokenizerGKDConfig) -> None:
    """Refuse launchers, and settings of theirs in the environment, that this trainer cannot work under.

    Raises:
        ConfigError: Naming what the run is launched with.
    """
    sharding = {
        "tensor or context parallelism": args.parallelism_config is not None
        or parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG"),
        "Megatron-LM": parse_flag_from_env("ACCELERATE_USE_MEGATRON_LM"),
    }
    for launcher, is_used in sharding.items():
        if is_used:
            refuse_launcher(launcher)
    if args.deepspeed_plugin is not None:
        check_zero_stage(args.deepspeed_plugin.zero_stage)
    _check_fsdp(args)
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")).lower() != "no":
        raise ConfigError(
            f"The run is launched with `torch.compile` (ACCELERATE_DYNAMO_BACKEND={backend!r}), but the forward of "
            "this trainer goes past the compiled model. Launch it without `--dynamo_backend`."
        )


def _check_fsdp(args: CrossTokenizerGKDConfig) -> None:
    given, settings = args.fsdp_plugin_args, args.fsdp_config or {}
    if not args.fsdp and settings:
        raise ConfigError(
            f"`fsdp_config={settings!r}` has no effect without `fsdp`. Set `fsdp=True`, or leave it out."
        )
    if settings.get("xla"):
        refuse_launcher("FSDP on XLA")
    if not shards_student(args):
        return
    # Those of Accelerate where the arguments have none.
    version, saved = os.environ.get("FSDP_VERSION", "1"), os.environ.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    if given is not None:
        version, saved = given["fsdp_version"], given["state_dict_type"]
    check_fsdp_version(version)
    kind, where = args.distributed_state.distributed_type, f"{args.world_size} process(es) on {args.device}"
    if kind in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ConfigError(
            f"The run is launched with FSDP, which is for several GPUs, but has {where}. Leave FSDP out, or launch it "
            "with as many processes as there are GPUs (`--num_processes`). A dry run has one: try it without FSDP."
        )
    if saved != "FULL_STATE_DICT":
        raise ConfigError(
            f"The run is launched with FSDP and the state dict type {saved!r}, with which Transformers saves no model "
            "at the end. Set `fsdp_config={'state_dict_type': 'FULL_STATE_DICT'}`, or `fsdp_state_dict_type` of the "
            "launcher."
        )
    refuse_unsharded(args.optim)
    if args.reloads_weights:
        raise ConfigError(
            "The run is launched with FSDP, and with `vllm_weight_sync='reload'` one process saves the weights that "
            "it has. Set `vllm_weight_sync='nccl'` or `vllm_mode='colocate'`, or leave `use_vllm` out."
        )


def shards_student(args: CrossTokenizerGKDConfig) -> bool:
    """Whether the run is launched with FSDP, by its arguments or by the environment."""
    return args.fsdp_plugin_args is not None or parse_flag_from_env("ACCELERATE_USE_FSDP")


def check_fsdp_version(version: int | str) -> None:
    """Refuse another version than 2.

    Raises:
        ConfigError: If it is one.
    """
    if str(version) != "2":
        refuse_launcher(f"FSDP of version {version}")


def check_zero_stage(stage: int | str) -> None:
    """Refuse a stage of DeepSpeed that shards parameters.

    Raises:
        ConfigError: If it does.
    """
    if str(stage) == "3":
        refuse_launcher("DeepSpeed ZeRO stage 3")


def refuse_launcher(launcher: str) -> NoReturn:
    """Refuse a launcher that shards parameters or sequences in a way that this trainer does not know.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(
        f"The run is launched with {launcher}, and this trainer gathers neither parameters nor sequences from "
        "several devices that way. Launch it with DDP (`accelerate launch --multi_gpu`), with FSDP2 "
        "(`--accelerate_config fsdp2`), with DeepSpeed ZeRO up to stage 2, or on one device."
    )
