"""On-policy distillation across model families, as a TRL trainer.

The public names are loaded on first use, so the aligner needs neither torch nor trl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .alignment.aligner import Alignment, TokenizerAligner
    from .alignment.audit import TokenizerAudit, audit_tokenizers
    from .training.config import CrossTokenizerGKDConfig
    from .training.trainer import CrossTokenizerGKDTrainer

_MODULE_OF = {
    "Alignment": "alignment.aligner",
    "CrossTokenizerGKDConfig": "training.config",
    "CrossTokenizerGKDTrainer": "training.trainer",
    "TokenizerAligner": "alignment.aligner",
    "TokenizerAudit": "alignment.audit",
    "audit_tokenizers": "alignment.audit",
}

__all__ = [
    "Alignment",
    "CrossTokenizerGKDConfig",
    "CrossTokenizerGKDTrainer",
    "TokenizerAligner",
    "TokenizerAudit",
    "audit_tokenizers",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
