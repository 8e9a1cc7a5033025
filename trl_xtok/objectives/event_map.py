"""Events that two vocabularies have in common, and how the tokens of one of them make them up."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ModelError


@dataclass(frozen=True, slots=True)
class EventMap:
    """How the tokens of one vocabulary make up events.

    Attributes:
        columns: Tokens that take part, in an order that both sides share; the distribution is renormalised over them.
            `None` for all tokens.
        classes: Event of each token that takes part; `None` if each is an event of its own.
        num_events: How many events there are; `None` if it is the number of tokens that take part.

    Raises:
        ModelError: If classes are given without their number, or one of them is out of its range.
    """

    columns: Int[Tensor, " events"] | None = None
    classes: Int[Tensor, " tokens"] | None = None
    num_events: int | None = None

    def __post_init__(self) -> None:
        if self.classes is None:
            return
        if self.num_events is None or not 0 <= int(self.classes.min()) <= int(self.classes.max()) < self.num_events:
            raise ModelError(
                f"Classes run from {self.classes.min()} to {self.classes.max()} of num_events={self.num_events}. "
                "Number them from 0, give their number, and leave tokens without a class out of `columns`."
            )

    def without_tokens(self) -> Bool[Tensor, " events"] | None:
        """Events that no token of this side makes up, `None` if there can be none."""
        if self.classes is None:
            return None
        return torch.bincount(self.classes, minlength=cast(int, self.num_events)) == 0

    def token_logps_(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows tokens"]:
        """Log-probs of the tokens that take part; takes the place of `logits` if all of them do."""
        taking_part = logits if self.columns is None else logits[:, self.columns]
        return taking_part.sub_(taking_part.logsumexp(dim=1, keepdim=True))

    def event_logps(self, token_logps: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows events"]:
        """Log-probs of the events; an event without tokens gets a very small one."""
        if self.classes is None:
            return token_logps
        shape = len(token_logps), cast(int, self.num_events)
        largest = token_logps.new_full(shape, -math.inf)
        largest.scatter_reduce_(1, self.classes.expand_as(token_logps), token_logps, "amax")
        sums = token_logps.new_zeros(shape)
        sums.index_add_(1, self.classes, (token_logps - largest[:, self.classes]).exp_())
        smallest = math.log(torch.finfo(sums.dtype).tiny)
        return sums.log_().add_(largest).masked_fill_(largest.isinf(), smallest)

    def spread(
        self,
        event_values: Float[Tensor, "rows events"],
        event_logps: Float[Tensor, "rows events"],
        token_logps: Float[Tensor, "rows tokens"],
        vocab_size: int,
    ) -> Float[Tensor, "rows vocab"]:
        """The value of each event times the share that a token has in it; 0 for tokens that take no part."""
        values = event_values
        if self.classes is not None:
            values = values[:, self.classes].mul_((token_logps - event_logps[:, self.classes]).exp_())
        if self.columns is None:
            return values
        return values.new_zeros(len(values), vocab_size).index_copy_(1, self.columns, values)
