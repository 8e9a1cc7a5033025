"""The numbers among the training arguments: which must be there, and in which range."""

import math
from typing import Any

from ..errors import ConfigError


_NUMBERS = ("lmbda", "beta", "temperature", "chunk_temperature", "chunk_weight", "crossentropy_weight")
_NUMBERS += ("min_coverage", "learning_rate", "num_train_epochs", "logging_steps", "save_steps")
_OPTIONAL_NUMBERS = ("advantage_clip", "canonical_guard", "max_lookahead", "scoring_temperature", "eval_steps")
_NOT_NEGATIVE = ("chunk_weight", "crossentropy_weight", "learning_rate", "num_train_epochs")
_NOT_NEGATIVE += ("logging_steps", "save_steps", "eval_steps")
# Whole numbers, each with the least that it can be.
_COUNTS = {
    "max_new_tokens": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "seed": 0,
    "max_steps": -1,
}
_OPTIONAL_COUNTS = {
    "block_size": 1,
    "generation_batch_size": 1,
    "max_chunk_tokens": 1,
    "max_length": 1,
    "num_completions_to_print": 0,
}


def check_numbers(args: Any) -> None:
    """Refuse numbers that are none or out of range."""
    for name in (*_NUMBERS, *_OPTIONAL_NUMBERS):
        value = getattr(args, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number and (name not in _OPTIONAL_NUMBERS or value is not None):
            raise ConfigError(f"`{name}` must be a number, got {value!r}.")
    _check_counts(args)
    for name in ("temperature", "scoring_temperature", "chunk_temperature"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ConfigError(f"`{name}` must be positive and finite, got {getattr(args, name)}.")
    for name in _NOT_NEGATIVE:
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < math.inf:
            raise ConfigError(f"`{name}` must be finite and at least 0, got {getattr(args, name)}.")
    for name in ("lmbda", "beta"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"`{name}` must be in [0, 1], got {getattr(args, name)}.")
    if args.max_lookahead is not None and not 0 <= args.max_lookahead <= 1:
        raise ConfigError(f"`max_lookahead` is a probability, got {args.max_lookahead}. 1.0 joins nothing.")
    if not 0 <= args.min_coverage <= 1:
        raise ConfigError(f"`min_coverage` is a share and must be in [0, 1], got {args.min_coverage}.")
    if args.advantage_clip is not None and not 0 < args.advantage_clip < math.inf:
        raise ConfigError(
            f"`advantage_clip` must be positive and finite, got {args.advantage_clip}. Use None for no clipping."
        )
    if args.canonical_guard is not None and not 0 <= args.canonical_guard < math.inf:
        raise ConfigError(
            f"`canonical_guard` must be finite and at least 0, got {args.canonical_guard}. Use None for no guard."
        )
    if args.max_length is not None and args.max_new_tokens >= args.max_length:
        raise ConfigError(
            f"`max_new_tokens={args.max_new_tokens}` leaves no room for a prompt within "
            f"`max_length={args.max_length}`, which counts prompt and completion. Raise `max_length`, set it to "
            "None, or lower `max_new_tokens`."
        )


def _check_counts(args: Any) -> None:
    for name, least in (_COUNTS | _OPTIONAL_COUNTS).items():
        value = getattr(args, name)
        if value is None and name in _OPTIONAL_COUNTS:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            optional = "None or " if name in _OPTIONAL_COUNTS else ""
            raise ConfigError(f"`{name}` must be {optional}a whole number of at least {least}, got {value!r}.")
    if args.max_steps == 0:
        raise ConfigError("`max_steps=0` would take one step. Give a number of steps, or -1 for `num_train_epochs`.")


def read_charge(value: Any, baseline: str) -> float:
    """The charge as a number."""
    try:
        charge = float(value)
    except (TypeError, ValueError):
        charge = math.nan
    if not -math.inf < charge <= 0:
        raise ConfigError(
            f"`dropped_advantage` must be 'mean' or a finite number of at most zero (more is a reward), got {value!r}."
        )
    if charge < 0 and baseline == "mean":
        raise ConfigError(
            f"`dropped_advantage={charge}` beside `advantage_baseline='mean'` is a reward where the mean is lower. "
            "Use 'mean' or 0.0, or no baseline."
        )
    return charge
