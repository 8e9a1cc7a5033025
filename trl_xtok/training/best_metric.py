"""By which metric checkpoints are compared: the loss of an objective that credits samples says nothing of them.

Such a loss is near zero for a student that says what its teacher would, and negative for one that does not.
"""

from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError
from .config_checks import CREDITING, ObjectiveName


DIVERGENCE = "xtok/reverse_kl_per_byte"
# Transformers takes any name that does not end with "loss" for one of which more is better.
_LESS_IS_BETTER = (
    DIVERGENCE,
    "xtok/reverse_kl_end",
    "xtok/vocab_jsd",
    "xtok/cross_entropy",
    "xtok/noncanonical_ratio",
    "xtok/clipped_advantages",
    "completions/clipped_ratio",
    "step_time",
)
_LESS_OF_ALL = ("xtok/dropped_", "time/")
_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


def choose_metric(args: Any) -> None:
    """Set `metric_for_best_model` where it is needed and missing, and `greater_is_better` for our own metrics."""
    needed = args.load_best_model_at_end or args.lr_scheduler_type in _SCHEDULES
    credits_samples = args.objective in ("auto", *CREDITING) and not args.eval_on_dataset
    if needed and args.metric_for_best_model is None and credits_samples:
        args.metric_for_best_model = DIVERGENCE
    name = args.metric_for_best_model
    if name is None or args.greater_is_better is not None:
        return
    if name.endswith(_LESS_IS_BETTER) or any(part in name for part in _LESS_OF_ALL):
        args.greater_is_better = False


def refuse_loss(args: Any, objective: ObjectiveName, datasets: Iterable[str] = ()) -> None:
    """Refuse the loss as `metric_for_best_model` where it does not say which student is better.

    Args:
        args: The training arguments.
        objective: What is minimised; `auto` is let through.
        datasets: Names of the evaluation datasets, if there are several.

    Raises:
        ConfigError: If it is one.
    """
    name = args.metric_for_best_model
    kinds = ("loss", "unmatched_loss")
    losses = {*kinds, *(f"{dataset}_{kind}" for dataset in datasets for kind in kinds)}
    if name is None or name.removeprefix("eval_") not in losses or objective not in CREDITING:
        return
    # Credit is for what the student wrote.
    if args.eval_on_dataset or (objective != "chunk_rkl" and args.chunk_weight == 0):
        return
    raise ConfigError(
        f"`metric_for_best_model={name!r}` would choose the worst checkpoint: with `objective={objective!r}` the loss "
        "is an advantage times a log-prob, which rises towards zero while the student improves. Use "
        f"'eval_{DIVERGENCE}' (that of one dataset of several is 'eval_<name>_{DIVERGENCE}'), or a metric of your own "
        "(`compute_metrics`)."
    )
