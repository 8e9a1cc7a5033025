"""The memory of a run, from its training arguments and the configurations of its models."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig
from transformers import BitsAndBytesConfig, PreTrainedConfig

from ..errors import ConfigError
from ..planning.gpus import GPU, GPUS
from ..planning.models import ModelSpec, quantized
from ..planning.plan import MemoryPlan, plan_memory
from ..planning.run_spec import RunSpec
from .config import CrossTokenizerGKDConfig
from .launch import shards_student
from .loading import context_length, teacher_init_kwargs


def plan_for_training(
    args: CrossTokenizerGKDConfig,
    student_config: PreTrainedConfig,
    teacher_config: PreTrainedConfig,
    *,
    peft_config: PeftConfig | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
    prompt_length: int | None = None,
    teacher_ratio: float = 1.0,
    gpus: Sequence[GPU] = tuple(GPUS.values()),
) -> MemoryPlan:
    """Peak memory of a run on each of its devices; see [`planning.plan_memory`].

    Args:
        args: The training arguments.
        student_config: Configuration of the student.
        teacher_config: Configuration of the teacher, which counts only if it is loaded here.
        peft_config: Adapter of the student.
        quantization_config: Quantization of the student; `None` takes what `args.model_init_kwargs` say.
        prompt_length: Longest prompt in student tokens; `None` takes what `max_length` or the context leaves.
        teacher_ratio: Teacher tokens for each student token, as `audit_tokenizers(...).total.teacher_ratio`.
        gpus: For which to find the largest batch.

    Raises:
        ConfigError: If it is not known how long a prompt may be, or a setting has no known memory.
        ModelError: If one of the models cannot be built or walked through without weights.
    """
    if args.use_vllm and args.vllm_mode == "colocate":
        raise ConfigError(
            "`vllm_mode='colocate'` takes memory on the same devices, and how much of it is not known here. Leave "
            "`use_vllm` out to see what the rest needs."
        )
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    loading = args.model_init_kwargs or {}
    quantization = quantization_config or loading.get("quantization_config")
    student = ModelSpec(student_config, _dtype(loading.get("dtype", "float32"), student_config), adapter=peft_config)
    run = RunSpec(
        student=quantized(student, _as_dict(quantization)),
        teacher=_teacher(args, teacher_config, half) if args.teacher_server_url is None else None,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        generation_batch_size=args.generation_batch_size,
        prompt_length=prompt_length or _prompt_length(args, student_config),
        max_new_tokens=args.max_new_tokens,
        teacher_ratio=teacher_ratio,
        objective=args.objective,
        block_size=args.block_size,
        autocast=half,
        gradient_checkpointing=(args.gradient_checkpointing_kwargs or {}) if args.gradient_checkpointing else None,
        optim=str(args.optim.value),
        offload_teacher=args.offload_teacher,
        samples=not args.use_vllm,
        num_processes=args.world_size,
        fsdp=shards_student(args),
        sync_each_batch=(args.accelerator_config.gradient_accumulation_kwargs or {}).get("sync_each_batch", False),
        on_gpu=not args.use_cpu,
    )
    return plan_memory(run, gpus)


def _prompt_length(args: CrossTokenizerGKDConfig, config: PreTrainedConfig) -> int:
    lengths = [length for length in (args.max_length, context_length(config)) if length is not None]
    if not lengths:
        raise ConfigError(
            "`max_length` is None and the student's configuration does not say how long a text may be, so the longest "
            "prompt is not known. Give `prompt_length`, or set `max_length`."
        )
    return min(lengths) - args.max_new_tokens


def _dtype(value: Any, config: PreTrainedConfig) -> torch.dtype:
    """A dtype from how it can be written; `auto` is that of the saved weights."""
    if isinstance(value, torch.dtype):
        return value
    if value in ("auto", None):
        return config.dtype or torch.float32
    return getattr(torch, value.removeprefix("torch."))


def _teacher(args: CrossTokenizerGKDConfig, config: PreTrainedConfig, half: torch.dtype | None) -> ModelSpec:
    loading = teacher_init_kwargs(args)
    dtype = _dtype(loading.get("dtype", half or torch.float32), config)
    return quantized(ModelSpec(config, dtype), _teacher_quantization(args, loading, dtype))


def _teacher_quantization(
    args: CrossTokenizerGKDConfig, loading: dict[str, Any], compute_dtype: torch.dtype
) -> dict[str, Any] | None:
    if args.load_teacher_in_4bit:
        return {"load_in_4bit": True, "bnb_4bit_compute_dtype": compute_dtype}
    return args.teacher_quantization_config or _as_dict(loading.get("quantization_config"))


def _as_dict(quantization: Any) -> dict[str, Any] | None:
    return quantization.to_dict() if isinstance(quantization, BitsAndBytesConfig) else quantization
