"""Which chunks and tokens of a micro-batch are trained on."""

from typing import NamedTuple


class Selection(NamedTuple):
    """What is trained on.

    Attributes:
        on_policy: Whether the student wrote the completions.
        charge_dropped: Whether tokens that the student made unscorable are trained on with a charge.
        imitate: Whether every token is trained on with a cross-entropy.
        keep_unfinished: Whether the last chunk of a completion without stop token is trained on. It is complete where
            both sides have one tokenizer.
        one_to_one_only: Whether to leave out all chunks but those of one token on both sides.
        max_chunk_tokens: Most tokens that a chunk may have on either of its sides; `None` for no limit.
        drop_whitespace: Whether to leave out chunks of nothing but white space.
    """

    on_policy: bool = True
    charge_dropped: bool = True
    imitate: bool = False
    keep_unfinished: bool = False
    one_to_one_only: bool = False
    max_chunk_tokens: int | None = None
    drop_whitespace: bool = False

    def drop_reason(self, tokens: int, blank: bool) -> str | None:
        """Why a chunk with this many tokens on its longer side is left out, or `None`."""
        if self.drop_whitespace and blank:
            return "whitespace"
        if self.one_to_one_only and tokens > 1:
            return "not_one_to_one"
        return "long_chunk" if self.max_chunk_tokens is not None and tokens > self.max_chunk_tokens else None
