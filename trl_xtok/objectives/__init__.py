"""Log-probs, chunk sums, credit and losses on tensors; no tokenizer and no trl."""

from .chunk_ops import chunk_sizes, spread_over_tokens, sum_by_chunk
from .credit import (
    Credit,
    additive,
    chunk,
    chunk_advantages,
    clip_advantages,
    dropped_charge,
    finite_chunks,
    proportional,
    text_correction,
    uniform,
)
from .event_map import EventMap
from .liger_jsd import liger_jsd, use_liger_jsd
from .logps import Backend, LMHead, default_block_size, token_logps
from .losses import chunk_jsd, chunk_rkl, generalized_jsd, reverse_kl_estimate
from .token_sets import probability_of_any
from .vocab_jsd import VocabJSD, vocab_jsd


__all__ = [
    "Backend",
    "Credit",
    "EventMap",
    "LMHead",
    "VocabJSD",
    "additive",
    "chunk",
    "chunk_advantages",
    "chunk_jsd",
    "chunk_rkl",
    "chunk_sizes",
    "clip_advantages",
    "default_block_size",
    "dropped_charge",
    "finite_chunks",
    "generalized_jsd",
    "liger_jsd",
    "probability_of_any",
    "proportional",
    "reverse_kl_estimate",
    "spread_over_tokens",
    "sum_by_chunk",
    "text_correction",
    "token_logps",
    "uniform",
    "use_liger_jsd",
    "vocab_jsd",
]
