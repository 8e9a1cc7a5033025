"""The training arguments for rollouts: whether vLLM writes them, and how it gets the student's weights."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from ..errors import ConfigError
from ..serving.server import check_url
from .trl_compat import is_vllm_available


_SERVER = ("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_weight_sync")
_COLOCATE = (
    *("vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size"),
    *("vllm_enable_sleep_mode", "vllm_model_impl"),
)
_ONLY_FOR = {"nccl": ("vllm_group_port",), "reload": ("vllm_weight_sync_dir",)}


@dataclass
class EngineArguments:
    """
    The arguments of [`CrossTokenizerGKDConfig`] for rollouts, those from vLLM named as in [`DistillationConfig`];
    `vllm_weight_sync` and `vllm_weight_sync_dir` are our own.

    Args:
        generation_batch_size (`int`, *optional*):
            Number of completions generated together on one device, or asked for at the same time by one process where
            a vLLM server that reads the weights from a folder writes them. `None` is `per_device_train_batch_size`,
            and 64 with a server. Where vLLM gets the weights in another way it decides itself, and this is refused.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM writes the student's completions, in training and in evaluations.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"server"` asks a vLLM server. `"colocate"` runs vLLM on the devices and in the processes of the trainer,
            through TRL; it needs CUDA and vLLM.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`):
            Whose implementation of the model a colocated vLLM runs: `"vllm"` or `"transformers"`.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Whether a colocated vLLM gives its memory back during the update.
        vllm_server_base_url (`str`, *optional*):
            Address of the server, for example `"http://127.0.0.1:8000"`, instead of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Seconds after which a request to the server is given up: a server that is away is waited for so long, and
            a completion must be finished within this time, the wait for its turn included.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            Port over which the weights go to the server with NCCL.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Share of the device's memory that a colocated vLLM takes.
        vllm_max_model_length (`int`, *optional*):
            Longest prompt and completion together of a colocated vLLM. `None` takes the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Number of devices over which a colocated vLLM splits the model.
        vllm_weight_sync (`str`, *optional*, defaults to `"auto"`):
            How a server gets the student's weights before each step: `"reload"` saves them into a folder that the
            server reads, and needs neither CUDA nor vLLM here; `"nccl"` sends them from device to device through TRL.
            `"auto"` is `"nccl"` where both are available, else `"reload"`.
        vllm_weight_sync_dir (`str`, *optional*):
            The folder for `"reload"`, which the server must find at the same path. `None` takes `vllm_weights` in
            `output_dir`.
    """

    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of completions generated together on one device. None is `per_device_train_batch_size`."
        },
    )
    use_vllm: bool = field(default=False, metadata={"help": "Whether vLLM writes the student's completions."})
    vllm_mode: Literal["colocate", "server"] = field(
        default="colocate", metadata={"help": "Whether vLLM runs in the processes of the trainer or as a server."}
    )
    vllm_model_impl: Literal["vllm", "transformers"] = field(
        default="vllm", metadata={"help": "Whose implementation of the model a colocated vLLM runs."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "Whether a colocated vLLM gives its memory back during the update."}
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "Address of the vLLM server, instead of host and port."}
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "Host of the vLLM server."})
    vllm_server_port: int = field(default=8000, metadata={"help": "Port of the vLLM server."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "Seconds after which a request to the vLLM server is given up."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "Port over which the weights go to the vLLM server with NCCL."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the device's memory that a colocated vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Longest prompt and completion together of a colocated vLLM."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "Number of devices over which a colocated vLLM splits the model."}
    )
    vllm_weight_sync: Literal["auto", "nccl", "reload"] = field(
        default="auto",
        metadata={"help": "How a vLLM server gets the student's weights: over NCCL, or from a folder that it reads."},
    )
    vllm_weight_sync_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for the weights that the vLLM server reads, at the same path for both."},
    )

    @property
    def vllm_url(self) -> str:
        """Address of the vLLM server."""
        return self.vllm_server_base_url or f"http://{self.vllm_server_host}:{self.vllm_server_port}"

    @property
    def reloads_weights(self) -> bool:
        """Whether a vLLM server reads the student's weights from a folder."""
        if not self.use_vllm or self.vllm_mode != "server":
            return False
        return self.vllm_weight_sync == "reload" or (self.vllm_weight_sync == "auto" and bool(_what_lacks()))


def check_engine_arguments(args: Any) -> None:
    """Refuse settings of vLLM that would be ignored or are out of range.

    Raises:
        ConfigError: Naming the argument.
    """
    if not args.use_vllm:
        every = [item.name for item in fields(EngineArguments) if item.name.startswith("vllm_")]
        _refuse_set(args, every, "without `use_vllm=True`")
    elif args.vllm_mode == "colocate":
        _refuse_set(args, [*_SERVER, "vllm_group_port", "vllm_weight_sync_dir"], "with `vllm_mode='colocate'`")
    else:
        check_url(args.vllm_url)
        _refuse_set(args, _COLOCATE, "with `vllm_mode='server'`: give the server its flag")
        other = {"nccl": "reload", "reload": "nccl", "auto": ""}[args.vllm_weight_sync]
        _refuse_set(args, _ONLY_FOR.get(other, ()), f"with `vllm_weight_sync={args.vllm_weight_sync!r}`")
    # A teacher that writes is asked for as many together.
    if args.use_vllm and not args.reloads_weights and not args.seq_kd:
        way = f"vllm_weight_sync={args.vllm_weight_sync!r}" if args.vllm_mode == "server" else "vllm_mode='colocate'"
        _refuse_set(args, ["generation_batch_size"], f"with `{way}` here: vLLM decides what it generates together")
    if not 0 < args.vllm_gpu_memory_utilization <= 1:
        raise ConfigError(
            f"`vllm_gpu_memory_utilization` is a share and must be above 0 and at most 1, got "
            f"{args.vllm_gpu_memory_utilization}."
        )
    if not 0 < args.vllm_server_timeout < float("inf"):
        raise ConfigError(f"`vllm_server_timeout` must be positive and finite, got {args.vllm_server_timeout}.")


def check_engine(args: EngineArguments) -> None:
    """Refuse a way of using vLLM that this machine has not got.

    Raises:
        ConfigError: Naming what lacks, and the way that needs nothing here.
    """
    if args.use_vllm and not args.reloads_weights and (lacking := _what_lacks()):
        way = "'colocate'" if args.vllm_mode == "colocate" else f"'server', vllm_weight_sync={args.vllm_weight_sync!r}"
        raise ConfigError(
            f"`use_vllm=True` with `vllm_mode={way}` needs {lacking}. Start a vLLM server and set "
            "`vllm_mode='server'` and `vllm_weight_sync='reload'`, for which the trainer needs neither CUDA nor vLLM."
        )


def _what_lacks() -> str:
    lacking = [] if torch.cuda.is_available() else ["CUDA, which is not available here"]
    return " and ".join([*lacking, *([] if is_vllm_available() else ["vLLM, which is not installed here"])])


def _refuse_set(args: Any, names: Any, why: str) -> None:
    for name in names:
        if (value := getattr(args, name)) != type(args).__dataclass_fields__[name].default:
            raise ConfigError(f"`{name}={value!r}` has no effect {why}. Leave it out.")
