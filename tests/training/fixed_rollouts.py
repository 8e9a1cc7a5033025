"""Completions that a ByteLevel student (SmolLM2) can sample, one of each troublesome kind, and a trainer for them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tests import real_tokenizers
from tests.conversion import printable_bytes
from tests.training.tiny_models import PROMPTS
from trl_xtok import CrossTokenizerGKDTrainer
from trl_xtok.training.data import unpad


# Rows of the embedding beyond the tokenizer, as many models have them; the student can sample these ids too.
PADDING_ROWS = 64


def text(content: str) -> list[int]:
    """The student's own tokens for a text."""
    return real_tokenizers.smollm2().encode(content, add_special_tokens=False)


def raw(content: bytes) -> list[int]:
    """One token per byte."""
    shown = printable_bytes()
    return real_tokenizers.smollm2().convert_tokens_to_ids([shown[byte] for byte in content])


def stop() -> list[int]:
    """The token that ends a turn."""
    return [real_tokenizers.smollm2().eos_token_id]


def rollouts() -> dict[str, list[int]]:
    """A completion for each of `PROMPTS`."""
    unknown = [len(real_tokenizers.smollm2()) + 5]
    completions = [
        text(" 1, 2, 3 and 12345. \u4f60\u597d\u4e16\u754c!") + stop(),
        raw(b" Hello") + text(" there") + raw(b"!!") + stop(),
        text(" Unfinished, and never to be finish"),
        text(" a") + raw(b"\xc3") + text(" b, then") + raw(b"\xf0\x9f") + text(" four words more here") + stop(),
        text(" Paris") + unknown + text(" is it, 2024.") + stop(),
        [],
        stop(),
        text(" 4, that") + raw(b" is 4") + text(" in every book") + raw(b"\xe4\xbd"),
    ]
    return dict(zip(PROMPTS, completions, strict=True))


class FixedTrainer(CrossTokenizerGKDTrainer):
    """Takes each prompt's completion from `rollouts` instead of sampling it."""

    rollouts: dict[str, list[int]]

    def _roll_out(self, prompts: Sequence[dict[str, Tensor]]) -> list[list[int]]:
        by_prompt = {tuple(self.data_collator.tokenize(p)[0]): ids for p, ids in self.rollouts.items()}
        return [
            by_prompt[tuple(row)]
            for batch in prompts
            for row in unpad(batch["prompts"], batch["prompt_attention_mask"])
        ]


def whole_step(trainer: CrossTokenizerGKDTrainer, prompts: Sequence[str], batch_size: int) -> list[dict[str, Any]]:
    """The micro-batches of one optimizer step over `prompts`, as the trainer prepares them, with their normalizer."""
    batches = [
        trainer.data_collator([{"prompt": prompt} for prompt in prompts[start : start + batch_size]])
        for start in range(0, len(prompts), batch_size)
    ]
    inputs, count = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    return [{"inputs": each, "num_items_in_batch": count} for each in inputs]
