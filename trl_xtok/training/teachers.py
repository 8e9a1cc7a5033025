"""The teacher: who scores the completions.

A teacher needs to say one number per token of its own encoding of a completion. `LocalTeacher` computes it with a
transformers model, quantized or not.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from ..errors import ConfigError, ModelError
from .config import CrossTokenizerGKDConfig
from .scoring import causal_lm, check_head, completion_logps, pack


class Teacher(Protocol):
    """Whoever can score completions in the teacher's tokens."""

    def token_logps(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " teacher_tokens"]:
        """Log-prob of each completion token, in nats, the completions one after the other; NaN where unknown."""
        ...


class LocalTeacher:
    """Scores with a model in this process.

    Args:
        model: The teacher, on its device.
        args: Say how to score: `temperature`, `block_size`, `loss_backend`.

    Attributes:
        model: The teacher, in evaluation mode.
        context: Longest sequence it can read, or `None`. Tokens beyond it get NaN.

    Raises:
        ModelError: If it cannot be scored exactly.
    """

    def __init__(self, model: PreTrainedModel, args: CrossTokenizerGKDConfig):
        self.model = model.eval()
        self.context = context_length(causal_lm(model))
        self._args = args
        check_head(causal_lm(model), "teacher")

    @torch.no_grad()
    def token_logps(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " teacher_tokens"]:
        """See [`Teacher.token_logps`]."""
        device = self.model.get_input_embeddings().weight.device
        kept = [completion[: self._room(prompt)] for prompt, completion in zip(prompts, completions, strict=True)]
        logps = completion_logps(
            causal_lm(self.model),
            pack(prompts, kept, 0, device),
            temperature=self._args.temperature,
            block_size=self._args.block_size,
            backend=self._args.loss_backend,
        )
        missing = [len(completion) - len(scored) for completion, scored in zip(completions, kept, strict=True)]
        if not any(missing):
            return logps
        rows = logps.split([len(scored) for scored in kept])
        return torch.cat(
            [part for row, gap in zip(rows, missing, strict=True) for part in (row, row.new_full((gap,), torch.nan))]
        )

    def _room(self, prompt: Sequence[int]) -> int | None:
        return None if self.context is None else max(self.context - len(prompt), 0)


def load_teacher(teacher: str | PreTrainedModel, args: CrossTokenizerGKDConfig) -> PreTrainedModel:
    """The teacher on its device, quantized if `args` say so.

    Its precision follows the run (`bf16`, `fp16`, else float32) unless `teacher_model_init_kwargs` name a `dtype`. One
    that is loaded already is moved only if all of it is in main memory.

    Raises:
        ModelError: If 4-bit weights are asked for and bitsandbytes is missing.
    """
    if isinstance(teacher, str):
        teacher = _from_pretrained(teacher, args)
    if {parameter.device.type for parameter in teacher.parameters()} == {"cpu"}:
        teacher = teacher.to(args.device)
    return teacher


def _from_pretrained(name: str, args: CrossTokenizerGKDConfig) -> PreTrainedModel:
    kwargs: dict[str, Any] = {**(args.teacher_model_init_kwargs or {})}
    compute_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    dtype = kwargs.pop("dtype", compute_dtype)
    kwargs["dtype"] = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    quantization = _quantization_config(args, compute_dtype)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
        kwargs.setdefault("device_map", {"": args.device})
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except ImportError as error:
        raise ModelError(f"The teacher {name!r} cannot be loaded as asked: {error}") from error


def _quantization_config(args: CrossTokenizerGKDConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if args.load_teacher_in_4bit:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    if args.teacher_quantization_config is None:
        return None
    return BitsAndBytesConfig(**args.teacher_quantization_config)


def check_teacher(teacher_model: Any, args: CrossTokenizerGKDConfig) -> str | PreTrainedModel:
    """The teacher to use: the one given, else the one named in `args`.

    Raises:
        ConfigError: If there is none, or a loaded one comes with arguments for loading.
    """
    teacher = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
    if teacher is None:
        raise ConfigError(
            "There is no teacher: `teacher_model` and `args.teacher_model_name_or_path` are both None. "
            "Set one of them."
        )
    if isinstance(teacher, str):
        return teacher
    for name in ("teacher_model_init_kwargs", "load_teacher_in_4bit", "teacher_quantization_config"):
        if getattr(args, name):
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` says how to load the teacher, but `teacher_model` is a loaded "
                f"{type(teacher).__name__}. Pass its name or path, or leave `{name}` out."
            )
    return teacher


def context_length(model: PreTrainedModel) -> int | None:
    """Longest sequence that the model can read, or `None` if its configuration does not say."""
    return model.config.get_text_config().to_dict().get("max_position_embeddings")
