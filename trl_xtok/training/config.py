"""The training arguments: those of `GKDConfig`, and what cross-tokenizer distillation adds."""

import inspect
import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin

import torch
from transformers import BitsAndBytesConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import ConfigError
from .trl_compat import GKDConfig


# Our own fields that hold a dictionary, or JSON of one.
_DICTIONARIES = ("teacher_quantization_config", "chat_template_kwargs", "teacher_chat_template_kwargs")
# Inherited fields that no code path of this trainer reads yet, with the only value they may have.
_ONLY_VALUE: dict[str, Any] = {
    "lmbda": 1.0,
    "seq_kd": False,
    "beta": 0.5,
    "assistant_only_loss": False,
    "batch_eval_metrics": False,
    "average_tokens_across_devices": True,
    "completion_only_loss": None,
    "dataset_kwargs": None,
    "dataset_num_proc": None,
    "dataset_text_field": "text",
    "eval_packing": None,
    "include_for_metrics": [],
    "label_names": None,
    "label_smoothing_factor": 0.0,
    "loss_type": "nll",
    # Noise in the forward makes the scored policy another one than the sampled.
    "neftune_noise_alpha": None,
    "packing": False,
    "packing_strategy": "bfd",
    "pad_to_multiple_of": None,
    "padding_free": False,
    "router_aux_loss_coef": None,
    "shuffle_dataset": False,
    # The forward goes past the compiled wrapper.
    "torch_compile": False,
    "truncation_mode": "keep_start",
}


@dataclass
class CrossTokenizerGKDConfig(GKDConfig):
    """
    Configuration class for [`CrossTokenizerGKDTrainer`].

    This class includes only the parameters that cross-tokenizer distillation adds to [`experimental.gkd.GKDConfig`],
    and the defaults that it changes: `temperature=1.0`, `lmbda=1.0`, `bf16` (bfloat16 on Ampere or newer, else float16
    on CUDA, else float32) and `use_cpu` (`True` without an accelerator). `disable_dropout=False` keeps dropout in the
    forward that scores the rollouts, which are sampled without it.

    Args:
        objective (`str`, *optional*, defaults to `"auto"`):
            What is minimised. `"chunk_rkl"` is the chunk-aligned reverse KL of the [paper](https://huggingface.co/papers/2606.09456).
            `"auto"` chooses it.
        credit (`str`, *optional*, defaults to `"proportional"`):
            How a chunk's signal is split over its student tokens: `"proportional"` (the paper), `"additive"`,
            `"uniform"` or `"chunk"` (the whole signal to every token).
        segmentation (`str`, *optional*, defaults to `"path"`):
            `"path"` scores the tokens that the student sampled. `"text"` also scores the student's own canonical
            tokenization of the same text and takes away the reward for spreading one text over many tokenizations.
        advantage_clip (`float` or `None`, *optional*, defaults to `10.0`):
            Largest absolute advantage of a token, in nats. `None` switches clipping off.
        advantage_baseline (`str`, *optional*, defaults to `"none"`):
            `"mean"` subtracts the mean advantage of the optimizer step, which lowers the variance of the gradient.
            Several micro-batches in a step then cost a second forward pass of the student.
        dropped_advantage (`float` or `"mean"`, *optional*, defaults to `"mean"`):
            Advantage of sampled tokens that the student itself made unscorable (invalid UTF-8, unknown ids). `"mean"`
            is the mean advantage of the scored tokens of the optimizer step, at most zero. `0.0` does not charge them.
        min_coverage (`float`, *optional*, defaults to `0.5`):
            Training stops with an error when the share of sampled tokens that can be trained on stays below this.
        loss_backend (`str`, *optional*, defaults to `"auto"`):
            Who computes log-probs without logits: `"liger"`, `"torch"`, or `"auto"` (Liger on CUDA, if it can).
        block_size (`int`, *optional*):
            Number of tokens whose logits exist at the same time. `None` keeps them under 32 MiB.
        load_teacher_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to load the teacher in 4-bit NF4 with bitsandbytes. Only for a teacher given by name.
        teacher_quantization_config (`dict` or `str`, *optional*):
            Arguments of `BitsAndBytesConfig` for a teacher given by name, as a dictionary or JSON.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments for the student's chat template, as a dictionary or JSON.
        teacher_chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments for the teacher's chat template, for example `{"enable_thinking": false}`.
        teacher_chat_template_path (`str`, *optional*):
            Jinja file with the teacher's chat template, for a teacher whose tokenizer has none.
        generation_batch_size (`int`, *optional*):
            Number of completions generated together on one device. `None` is `per_device_train_batch_size`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GKDConfig._VALID_DICT_FIELDS, *_DICTIONARIES]

    # Parameters whose default values are overridden from GKDConfig
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature for sampling, and for the log-probs of both models."}
    )
    lmbda: float = field(
        default=1.0, metadata={"help": "Share of on-policy student-generated completions. Only 1.0 is supported."}
    )

    # Parameters that control the objective
    objective: Literal["auto", "chunk_rkl"] = field(
        default="auto", metadata={"help": "What is minimised: the chunk-aligned reverse KL (`chunk_rkl`, `auto`)."}
    )
    credit: Literal["proportional", "additive", "uniform", "chunk"] = field(
        default="proportional", metadata={"help": "How a chunk's signal is split over its student tokens."}
    )
    segmentation: Literal["path", "text"] = field(
        default="path",
        metadata={"help": "Whether to reward the sampled tokens (`path`) or the text that they spell (`text`)."},
    )
    advantage_clip: float | None = field(
        default=10.0, metadata={"help": "Largest absolute advantage of a token, in nats. None switches clipping off."}
    )
    advantage_baseline: Literal["none", "mean"] = field(
        default="none", metadata={"help": "What is subtracted from each advantage: nothing, or the step's mean."}
    )
    # Annotated as `str` since the command-line parser takes one type per argument; a number is accepted too.
    dropped_advantage: str = field(
        default="mean",
        metadata={
            "help": "Advantage of sampled tokens that the student itself made unscorable: a number, or `mean` for the "
            "mean of the scored tokens, at most zero."
        },
    )
    min_coverage: float = field(
        default=0.5,
        metadata={"help": "Training stops when the share of trained sampled tokens stays below this value."},
    )

    # Parameters that control the computation
    loss_backend: Literal["auto", "liger", "torch"] = field(
        default="auto", metadata={"help": "Who computes log-probs without logits."}
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Number of tokens whose logits exist at the same time. None keeps them under 32 MiB."},
    )
    generation_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of completions generated together on one device. None is `per_device_train_batch_size`."
        },
    )

    # Parameters that control the teacher and the prompts
    load_teacher_in_4bit: bool = field(
        default=False, metadata={"help": "Whether to load the teacher in 4-bit NF4 with bitsandbytes."}
    )
    teacher_quantization_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of `BitsAndBytesConfig` for the teacher."}
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments for the student's chat template."}
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments for the teacher's chat template."}
    )
    teacher_chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with the teacher's chat template, if its tokenizer has none."}
    )

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _has_bf16(self.use_cpu)
            self.fp16 = self.fp16 or (not self.bf16 and not self.use_cpu and torch.cuda.is_available())
        super().__post_init__()
        self._refuse_unsupported()
        self._check_ranges()
        self._check_teacher()
        if self.dropped_advantage != "mean":
            self.dropped_advantage = _charge(self.dropped_advantage)

    @property
    def scoring(self) -> dict[str, Any]:
        """How the log-probs of both models are computed."""
        return {"temperature": self.temperature, "block_size": self.block_size, "backend": self.loss_backend}

    def to_dict(self) -> dict[str, Any]:
        """Like the parent, which makes JSON of the student's quantization only."""
        written = super().to_dict()
        for name in ("teacher_model_init_kwargs", "teacher_quantization_config"):
            if written[name] is not None:
                written[name] = {key: _as_json(value) for key, value in written[name].items()}
        return written

    def _refuse_unsupported(self):
        for name, value in _ONLY_VALUE.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"`{name}={getattr(self, name)!r}` is not supported by cross-tokenizer distillation and would be "
                    f"ignored. Leave it at `{value!r}`."
                )
        for name in ("fp16", "use_liger_kernel"):
            if getattr(self, name) and self.use_cpu:
                raise ConfigError(f"`{name}=True` has no effect on a CPU, where float32 is used. Leave it at False.")
        _check_literals(self)

    def _check_ranges(self):
        for name in ("temperature", "min_coverage", "advantage_clip"):
            value = getattr(self, name)
            if not isinstance(value, int | float) and (name != "advantage_clip" or value is not None):
                raise ConfigError(f"`{name}` must be a number, got {value!r}.")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"`temperature` must be positive and finite, got {self.temperature}.")
        if not 0 <= self.min_coverage <= 1:
            raise ConfigError(f"`min_coverage` is a share and must be in [0, 1], got {self.min_coverage}.")
        if self.advantage_clip is not None and not self.advantage_clip > 0:
            raise ConfigError(
                f"`advantage_clip` must be positive, got {self.advantage_clip}. Use None to switch clipping off."
            )
        for name in ("block_size", "generation_batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is None and name != "max_new_tokens":
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if self.max_length is not None and self.max_new_tokens >= self.max_length:
            raise ConfigError(
                f"`max_new_tokens={self.max_new_tokens}` leaves no room for a prompt within "
                f"`max_length={self.max_length}`, which counts prompt and completion. Raise `max_length`, set it to "
                "None, or lower `max_new_tokens`."
            )

    def _check_teacher(self):
        for name in ("teacher_model_init_kwargs", *_DICTIONARIES):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"`{name}` must be a dictionary, or JSON of one that starts with {{, got {value!r}.")
        loading, quantization = self.teacher_model_init_kwargs or {}, self.teacher_quantization_config
        if self.load_teacher_in_4bit and quantization is not None:
            raise ConfigError(
                f"`load_teacher_in_4bit` and `teacher_quantization_config={quantization!r}` both say how to quantize "
                "the teacher. Keep one of them."
            )
        if (self.load_teacher_in_4bit or quantization is not None) and "quantization_config" in loading:
            raise ConfigError(
                "`teacher_model_init_kwargs` holds a `quantization_config` beside `load_teacher_in_4bit` or "
                "`teacher_quantization_config`. Keep one of them."
            )
        if quantization is not None:
            _check_quantization(quantization)
        dtype = loading.get("dtype", "auto")
        if dtype not in ("auto", None) and not isinstance(
            vars(torch).get(str(dtype).removeprefix("torch.")), torch.dtype
        ):
            raise ConfigError(
                f"`teacher_model_init_kwargs` has the dtype {dtype!r}, which torch does not know. Use for example "
                "'bfloat16', or 'auto' for the precision it was saved in."
            )


def _check_quantization(quantization: dict[str, Any]) -> None:
    """Refuse what `BitsAndBytesConfig` would pass over without a word, and so load the teacher unquantized."""
    known = [*inspect.signature(BitsAndBytesConfig).parameters, "quant_method", "_load_in_4bit", "_load_in_8bit"]
    unknown = [name for name in quantization if name not in known or name == "kwargs"]
    if unknown or not (quantization.get("load_in_4bit") or quantization.get("load_in_8bit")):
        found = f"unknown settings {unknown}" if unknown else "neither `load_in_4bit` nor `load_in_8bit`"
        raise ConfigError(
            f"`teacher_quantization_config={quantization!r}` has {found}, so the teacher would not be quantized as "
            "asked. Give the arguments of `BitsAndBytesConfig`, for example {'load_in_4bit': True}."
        )


def _as_json(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value.to_dict() if isinstance(value, QuantizationConfigMixin) else value


def _has_bf16(use_cpu: bool) -> bool:
    """Whether bfloat16 is fast here: float32 is the reference on a CPU, and cards before Ampere only emulate it."""
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _charge(value: Any) -> float:
    try:
        charge = float(value)
    except (TypeError, ValueError):
        charge = math.nan
    if not -math.inf < charge <= 0:
        raise ConfigError(
            f"`dropped_advantage` must be 'mean' or a finite number of at most zero (more is a reward), got {value!r}."
        )
    return charge


def _check_literals(args: CrossTokenizerGKDConfig) -> None:
    for item in fields(args):
        allowed, value = get_args(item.type), getattr(args, item.name)
        if get_origin(item.type) is Literal and value not in allowed:
            raise ConfigError(f"`{item.name}` must be one of {', '.join(allowed)}, got {value!r}.")
