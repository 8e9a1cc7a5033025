"""What the training arguments refuse, each with its values and what to do."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import torch
from transformers import BitsAndBytesConfig

from ..errors import ConfigError


# Our own fields that hold a dictionary, or JSON of one.
DICTIONARIES = ("teacher_quantization_config", "chat_template_kwargs", "teacher_chat_template_kwargs")
DICTIONARIES += ("teacher_weights",)
# Those that have one value, or a dictionary of values by the names of several teachers.
BY_NAME = ("teacher_model_name_or_path", "teacher_server_url", "teacher_server_model")
# Inherited fields that no code path of this trainer reads yet, with the only value they may have.
ONLY_VALUE: dict[str, Any] = {
    "assistant_only_loss": False,
    "batch_eval_metrics": False,
    "average_tokens_across_devices": True,
    "completion_only_loss": None,
    "dataset_kwargs": None,
    "dataset_num_proc": None,
    # Predictions are not collected.
    "eval_accumulation_steps": None,
    "eval_do_concat_batches": True,
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
    # Sampling always has a cache, and the scored forward never.
    "use_cache": False,
}
# TRL cannot switch checkpointing on again with these after the rollouts.
_NOT_WITH_ROLLOUTS = ("every_n_layers", "offload")
ObjectiveName = Literal["auto", "chunk_rkl", "chunk_jsd", "exact_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd"]
# Objectives that credit sampled tokens.
CREDITING: tuple[ObjectiveName, ...] = ("chunk_rkl", "hybrid", "prefix_jsd")
_CREDIT = ("credit", "segmentation", "advantage_clip", "advantage_baseline", "dropped_advantage", "canonical_guard")
_SELECTION = ("one_to_one_only", "max_chunk_tokens")
# What is about chunks as they are cut, and not as they are joined.
_AS_CUT = (*_SELECTION, "drop_whitespace", "segmentation")
# Arguments that an objective does not read. `auto` may still become one of two.
_UNREAD: dict[ObjectiveName, tuple[str, ...]] = {
    "auto": ("chunk_temperature", "chunk_weight"),
    "chunk_rkl": ("beta", "chunk_temperature", "chunk_weight"),
    "chunk_jsd": (*_CREDIT, "chunk_weight"),
    "exact_jsd": (*_CREDIT, *_SELECTION, "max_lookahead", "chunk_temperature", "chunk_weight"),
    "shared_vocab_jsd": (*_CREDIT, *_SELECTION, "max_lookahead", "chunk_temperature", "chunk_weight"),
    # A unit of the text correction may hold tokens that are compared and tokens that are credited.
    "hybrid": ("segmentation", "chunk_temperature"),
    "prefix_jsd": ("segmentation", "chunk_temperature"),
}
# The same where the student writes nothing.
_UNREAD_OFF_POLICY: dict[ObjectiveName, tuple[str, ...]] = {
    "auto": _CREDIT,
    # The cross-entropy is all that is left of it.
    "chunk_rkl": (*_CREDIT, *_SELECTION, "drop_whitespace", "max_lookahead"),
    # It compares at chunks of one token, which are not joined.
    "hybrid": (*_CREDIT, *_SELECTION, "chunk_weight", "max_lookahead"),
    "prefix_jsd": (*_CREDIT, "chunk_weight"),
}


def take_alias(args: Any) -> None:
    """Read `max_completion_length` as `max_new_tokens`."""
    given, default = args.max_completion_length, type(args).__dataclass_fields__["max_new_tokens"].default
    if given is not None and args.max_new_tokens not in (default, given):
        raise ConfigError(
            f"`max_completion_length={given}` and `max_new_tokens={args.max_new_tokens}` are two names of one "
            "argument. Keep one of them."
        )
    args.max_new_tokens = args.max_new_tokens if given is None else given


def refuse_unsupported(args: Any) -> None:
    """Refuse what would be ignored."""
    _check_choices(args)
    for name, value in ONLY_VALUE.items():
        if getattr(args, name) != value:
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` is not supported by cross-tokenizer distillation and would be "
                f"ignored. Leave it at `{value!r}`."
            )
    if args.dataset_text_field != "text" and (args.lmbda > 0 or args.seq_kd):
        raise ConfigError(
            f"`dataset_text_field={args.dataset_text_field!r}` names text that does not say where a prompt ends, but "
            f"with `lmbda={args.lmbda}` and `seq_kd={args.seq_kd}` an answer is written to each prompt. Set "
            "`lmbda=0.0` without `seq_kd`, or leave it at 'text' and give the dataset a `prompt` column."
        )
    if args.one_to_one_only and args.max_chunk_tokens is not None:
        raise ConfigError(
            f"`max_chunk_tokens={args.max_chunk_tokens}` has no effect beside `one_to_one_only=True`. Keep one."
        )
    if args.max_lookahead is not None and args.max_lookahead < 1:
        for name in _changed(args, _AS_CUT):
            raise ConfigError(
                f"`max_lookahead={args.max_lookahead}` joins chunks, and `{name}={getattr(args, name)!r}` is about "
                "chunks as they are cut. Keep one."
            )
    if not args.log_completions:
        for name in _changed(args, ("num_completions_to_print", "log_unique_prompts")):
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` has no effect without `log_completions=True`. Set that, or leave "
                "it out."
            )
    if args.use_vllm and not student_writes(args):
        raise ConfigError(
            f"`use_vllm=True` has no effect with `lmbda={args.lmbda}`, where the student writes nothing. Leave it at "
            "False, or raise `lmbda`."
        )
    for name in ("fp16", "use_liger_kernel", "activation_offloading"):
        if getattr(args, name) and args.use_cpu:
            raise ConfigError(f"`{name}=True` has no effect on a CPU. Leave it at False.")
    if lost := [name for name in _NOT_WITH_ROLLOUTS if name in (args.activation_checkpointing_kwargs or {})]:
        raise ConfigError(
            f"`activation_checkpointing_kwargs={args.activation_checkpointing_kwargs}` has {lost[0]!r}, which TRL "
            "cannot set again after it has switched checkpointing off to sample. Leave it out."
        )


def student_writes(args: Any) -> bool:
    """Whether the student writes completions, to train on or to evaluate."""
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    return args.lmbda > 0 or (evaluates and not args.eval_on_dataset)


def largest_lookahead(args: Any, objective: ObjectiveName) -> float:
    """Largest probability of undoing a cut with which it stays; 1 joins nothing."""
    if args.max_lookahead is not None:
        return args.max_lookahead
    # Where chunks begin would itself tell what was written there, to what compares distributions where they begin.
    misled = objective == "prefix_jsd" or args.advantage_baseline == "position"
    return 0.1 if misled and not _changed(args, _AS_CUT) else 1.0


def _changed(args: Any, names: Sequence[str]) -> list[str]:
    """Those that do not have their default."""
    return [name for name in names if getattr(args, name) != type(args).__dataclass_fields__[name].default]


def refuse_unread(args: Any, objective: ObjectiveName) -> None:
    """Refuse what `objective` does not read: the one that was asked for, or what `auto` turned out to be."""
    unread = [(_UNREAD[objective], "", "choose another objective")]
    if not student_writes(args):
        where = f" with `lmbda={args.lmbda}`, where the student writes nothing"
        unread.append((_UNREAD_OFF_POLICY.get(objective, ()), where, "raise `lmbda`"))
    if args.chunk_weight == 0:
        unread.append((_CREDIT, " with `chunk_weight=0`, which leaves the credit out", "raise `chunk_weight`"))
    chosen = "" if objective == args.objective else ", which `auto` chooses for these two tokenizers"
    for names, where, remedy in unread:
        for name in _changed(args, names):
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` has no effect on `objective={objective!r}`{chosen}{where}. "
                f"Leave it at {type(args).__dataclass_fields__[name].default!r}, or {remedy}."
            )


def refuse_invalid(args: Any, objective: ObjectiveName) -> None:
    """Refuse temperatures and completions that `objective`, which may still be `auto`, does not hold for."""
    scoring = args.scoring["temperature"]
    chosen = "" if objective == args.objective else ", which `auto` chooses for these two tokenizers,"
    if scoring != args.temperature and objective in CREDITING and student_writes(args):
        raise ConfigError(
            f"`scoring_temperature={scoring}` differs from `temperature={args.temperature}`, but `objective="
            f"{objective!r}` credits samples by the distribution that they were drawn from. Give both one value, or "
            "choose 'chunk_jsd', 'shared_vocab_jsd' or 'exact_jsd'."
        )
    if args.advantage_baseline == "position" and objective in ("hybrid", "prefix_jsd"):
        raise ConfigError(
            f"`advantage_baseline='position'` has no effect on `objective={objective!r}`, which compares the "
            "next-token distributions themselves. Use 'mean' or 'none', or `objective='chunk_rkl'`."
        )
    if args.chunk_weight == 0 and objective == "hybrid":
        raise ConfigError(
            "`chunk_weight=0` leaves chunks that `objective='hybrid'` does not compare without a loss, but counts "
            "them as trained on. Use 'shared_vocab_jsd', which leaves them out, or raise `chunk_weight`."
        )
    if args.lmbda < 1 and objective == "chunk_rkl" and not args.crossentropy_weight:
        raise ConfigError(
            f"`lmbda={args.lmbda}` leaves optimizer steps to completions that the student did not write, and "
            f"`objective='chunk_rkl'`{chosen} holds for its own ones only. Set `crossentropy_weight`, or an objective "
            "that compares distributions, such as 'prefix_jsd' or 'chunk_jsd'."
        )
    if args.crossentropy_weight and args.lmbda == 1:
        raise ConfigError(
            f"`crossentropy_weight={args.crossentropy_weight}` is about completions that the student did not write, "
            f"and `lmbda={args.lmbda}` leaves none. Lower `lmbda`, or set the weight to 0."
        )
    if args.crossentropy_weight and scoring != 1:
        raise ConfigError(
            f"`crossentropy_weight={args.crossentropy_weight}` is the weight of a cross-entropy at temperature 1, but "
            f"tokens are scored at temperature {scoring}. Set "
            f"`{'temperature' if objective in CREDITING and student_writes(args) else 'scoring_temperature'}=1.0`, or "
            "the weight to 0."
        )
    if args.seq_kd and args.lmbda == 1:
        raise ConfigError("`seq_kd=True` has no effect with `lmbda=1.0`, where the student writes. Lower `lmbda`.")


def check_teacher(args: Any) -> None:
    """Refuse contradictions in how the teacher is to be loaded."""
    for name in ("teacher_model_init_kwargs", *DICTIONARIES):
        value = getattr(args, name)
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"`{name}` must be a dictionary, or JSON of one that starts with {{, got {value!r}.")
    loading, quantization = args.teacher_model_init_kwargs or {}, args.teacher_quantization_config
    if args.load_teacher_in_4bit and quantization is not None:
        raise ConfigError(
            f"`load_teacher_in_4bit` and `teacher_quantization_config={quantization!r}` both say how to quantize "
            "the teacher. Keep one of them."
        )
    if (args.load_teacher_in_4bit or quantization is not None) and "quantization_config" in loading:
        raise ConfigError(
            "`teacher_model_init_kwargs` holds a `quantization_config` beside `load_teacher_in_4bit` or "
            "`teacher_quantization_config`. Keep one of them."
        )
    if quantization is not None:
        _check_quantization(quantization)
    revision = loading.get("revision", args.teacher_model_revision)
    if args.teacher_model_revision not in (None, revision):
        raise ConfigError(
            f"`teacher_model_revision={args.teacher_model_revision!r}` and the `revision` {revision!r} in "
            "`teacher_model_init_kwargs` are two names of one argument. Keep one of them."
        )
    if args.offload_teacher:
        _check_offload(args)
    dtype = loading.get("dtype", "auto")
    if dtype not in ("auto", None) and not isinstance(vars(torch).get(str(dtype).removeprefix("torch.")), torch.dtype):
        raise ConfigError(
            f"`teacher_model_init_kwargs` has the dtype {dtype!r}, which torch does not know. Use for example "
            "'bfloat16', or 'auto' for the precision it was saved in."
        )


def _check_offload(args: Any) -> None:
    if args.use_cpu:
        raise ConfigError(
            "`offload_teacher=True` has no effect on a CPU, where the teacher is in main memory anyway. Leave it at "
            "False."
        )
    settings = {"load_teacher_in_4bit": args.load_teacher_in_4bit}
    settings["teacher_quantization_config"] = args.teacher_quantization_config
    loading = args.teacher_model_init_kwargs or {}
    settings |= {name: loading.get(name) for name in ("quantization_config", "device_map")}
    for name, value in settings.items():
        if value:
            raise ConfigError(
                f"`offload_teacher=True` moves the teacher between devices, which a teacher with `{name}={value!r}` "
                "is not. Keep one of them."
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


def _check_choices(args: Any) -> None:
    for item in fields(args):
        allowed, value = get_args(item.type), getattr(args, item.name)
        if get_origin(item.type) is Literal and value not in allowed:
            raise ConfigError(f"`{item.name}` must be one of {', '.join(allowed)}, got {value!r}.")
        # A word such as "no" would count as true. The command-line parser also calls `str | bool` a `bool`.
        if item.type is bool and isinstance(item.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"`{item.name}` must be True or False, got {value!r}.")
