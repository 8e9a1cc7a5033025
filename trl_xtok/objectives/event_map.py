"""Events that two vocabularies have in common, and how the tokens of one of them make them up."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..errors import ModelError


class EventLogps(NamedTuple):
    """Log-probs of events, and what is needed to go back to tokens.

    Attributes:
        logps: Log-prob of each event, at least the smallest that a number of its kind can be the exponential of.
        token_weights: Where events are classes, what each token weighs, 0 for those that take no part.
        event_weights: And what the tokens of each event weigh together.
    """

    logps: Float[Tensor, "rows events"]
    token_weights: Float[Tensor, "rows vocab"] | None = None
    event_weights: Float[Tensor, "rows events"] | None = None


@dataclass(frozen=True)
class EventMap:
    """How the tokens of one vocabulary make up events.

    Tensors over a vocabulary are taken and made with neighbouring rows, not neighbouring tokens, next to each other in
    memory: to pick and to add up tokens then is to copy and to add up whole lines.

    Attributes:
        columns: Tokens that take part, in an order that both sides share; the distribution is renormalised over them.
            `None` for all tokens.
        classes: Event of each token that takes part, in ascending order; `None` if each is an event of its own.
        num_events: How many events there are; `None` if it is the number of tokens that take part.

    Raises:
        ModelError: If classes are given without their number, out of order, or out of its range.
    """

    columns: Int[Tensor, " tokens"] | None = None
    classes: Int[Tensor, " tokens"] | None = None
    num_events: int | None = None

    def __post_init__(self) -> None:
        if self.classes is None:
            return
        in_range = self.num_events is not None and 0 <= int(self.classes[0]) <= int(self.classes[-1]) < self.num_events
        if not in_range or not bool((self.classes.diff() >= 0).all()):
            raise ModelError(
                f"Classes run from {self.classes.min()} to {self.classes.max()} of num_events={self.num_events}. "
                "Number them from 0, give their number, sort the tokens by class, and leave tokens without a class "
                "out of `columns`."
            )

    @cached_property
    def empty(self) -> Tensor | None:
        """Events that no token of this side makes up, `None` if there can be none."""
        return None if self.classes is None else torch.bincount(self.classes, minlength=self._num_classes) == 0

    def count(self, vocab_size: int) -> int:
        """How many events there are for a vocabulary of this size."""
        if self.classes is not None:
            return self._num_classes
        return vocab_size if self.columns is None else len(self.columns)

    @property
    def _num_classes(self) -> int:
        return cast(int, self.num_events)

    @cached_property
    def _first_of_class(self) -> Tensor:
        classes = cast(Tensor, self.classes)
        return torch.searchsorted(classes, torch.arange(self._num_classes, device=classes.device))

    def event_logps_(self, logits: Float[Tensor, "rows vocab"]) -> EventLogps:
        """Log-probs of the events; `logits` is used up."""
        if self.classes is None:
            logps = logits if self.columns is None else logits.T.index_select(0, self.columns).T
            return EventLogps(logps.sub_(logps.logsumexp(dim=1, keepdim=True)))
        vocab_size = logits.shape[1]
        columns = torch.arange(vocab_size, device=logits.device) if self.columns is None else self.columns
        if len(columns) < vocab_size:
            # A token that takes no part could be so likely that all others vanish beside it.
            idle = torch.ones(vocab_size, dtype=torch.bool, device=logits.device).index_fill_(0, columns, False)
            logits.masked_fill_(idle, -torch.inf)
        weights = logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
        sums = embedding_bag(columns, weights.T, self._first_of_class, mode="sum").T
        logps = (sums / sums.sum(dim=1, keepdim=True)).clamp_(min=torch.finfo(sums.dtype).tiny).log_()
        return EventLogps(logps, weights, sums)

    def spread_(
        self, event_values: Float[Tensor, "rows events"], events: EventLogps, vocab_size: int
    ) -> Float[Tensor, "rows vocab"]:
        """The value of each event times the share that a token has in it; 0 for tokens that take no part."""
        values = event_values
        if self.classes is not None and events.token_weights is not None and events.event_weights is not None:
            values.div_(events.event_weights.clamp_(min=torch.finfo(values.dtype).tiny))
            values = values.T.index_select(0, self.classes).T
        if self.columns is not None:
            values = values.new_zeros(vocab_size, len(values)).index_copy_(0, self.columns, values.T).T
        return values if events.token_weights is None else values.mul_(events.token_weights)
