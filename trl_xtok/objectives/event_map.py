"""Events that two vocabularies have in common, and how the tokens of one of them make them up."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..errors import ModelError
from .torch_logps import slices


@dataclass(frozen=True)
class EventMap:
    """How the tokens of one vocabulary make up events.

    Tensors over a vocabulary have a line per token, with its numbers for all positions next to each other in memory:
    to pick and to add up tokens then is to copy and to add up whole lines.

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

    @property
    def is_whole(self) -> bool:
        """Whether each token of the vocabulary is an event."""
        return self.columns is None and self.classes is None

    def count(self, vocab_size: int) -> int:
        """How many events there are for a vocabulary of this size."""
        if self.classes is not None:
            return self._num_classes
        return vocab_size if self.columns is None else len(self.columns)

    @property
    def _num_classes(self) -> int:
        return cast(int, self.num_events)

    @cached_property
    def _class_starts(self) -> Int[Tensor, " bounds"]:
        classes = cast(Tensor, self.classes)
        return torch.searchsorted(classes, torch.arange(self._num_classes + 1, device=classes.device))

    @cached_property
    def _class_starts_on_host(self) -> Int[Tensor, " bounds"]:
        return self._class_starts.cpu()

    def normalize_(self, logits: Float[Tensor, "vocab rows"], tile: int) -> None:
        """Turn logits into scores of tokens, `tile` lines at a time.

        Scores are log-probs among the tokens that take part, but probabilities where events are classes. The other
        tokens become impossible.
        """
        if self.columns is not None and len(self.columns) < len(logits):
            idle = torch.ones(len(logits), dtype=torch.bool, device=logits.device).index_fill_(0, self.columns, False)
            # They could be so likely that all others vanish beside them.
            logits.index_fill_(0, idle.nonzero().squeeze(1), -torch.inf)
        # Numbers that are kept one by one between tiles would leave holes where no further tile fits.
        parts, memory = logits.new_empty(-(-len(logits) // tile), logits.shape[1]), torch.empty_like(logits[:tile])
        for part, lines in zip(parts, _tiles(logits, tile), strict=True):
            _logsumexp(lines, memory[: len(lines)], out=part)
        totals = parts.logsumexp(0)
        for lines in _tiles(logits, tile):
            lines.sub_(totals)
            if self.classes is not None:
                lines.exp_()

    def logps_of(self, scores: Float[Tensor, "vocab rows"], events: slice) -> Float[Tensor, "events rows"]:
        """Log-probs of some events, for classes at least the smallest one that a number can be the exponential of.

        May be a view of the scores.
        """
        if self.classes is None:
            return scores[events] if self.columns is None else scores.index_select(0, self.columns[events])
        first, end = (int(self._class_starts_on_host[event]) for event in (events.start, events.stop))
        tokens = torch.arange(first, end, device=scores.device) if self.columns is None else self.columns[first:end]
        sums = embedding_bag(tokens, scores, self._class_starts[events] - first, mode="sum")
        return sums.clamp_(min=torch.finfo(sums.dtype).tiny).log_()

    def pull_(
        self,
        scores: Float[Tensor, "vocab rows"],
        event_pulls: Float[Tensor, "events rows"],
        totals: Float[Tensor, " rows"],
        tile: int,
    ) -> None:
        """Turn scores into `probability * (event_pulls - totals)` where events are classes, else into
        `event_pulls - probability * totals`; 0 for tokens that take no part.
        """
        if self.classes is None:
            for lines in _tiles(scores, tile):
                lines.exp_().mul_(-totals)
            if self.columns is None:
                scores.add_(event_pulls)
            else:
                scores.index_add_(0, self.columns, event_pulls)
            return
        for part in slices(len(self.classes), tile):
            weights = event_pulls.index_select(0, self.classes[part]).sub_(totals)
            if self.columns is None:
                scores[part].mul_(weights)
            else:
                tokens = self.columns[part]
                scores.index_copy_(0, tokens, weights.mul_(scores.index_select(0, tokens)))


def _tiles(lines: Tensor, size: int) -> Iterator[Tensor]:
    """Views of so many lines."""
    return (lines[part] for part in slices(len(lines), size))


def _logsumexp(
    lines: Float[Tensor, "lines rows"], memory: Float[Tensor, "lines rows"], *, out: Float[Tensor, " rows"]
) -> None:
    """`lines.logsumexp(0)` in half the time; also where all are -inf."""
    largest = lines.amax(0).clamp_(min=torch.finfo(lines.dtype).min)
    torch.sum(torch.sub(lines, largest, out=memory).exp_(), 0, out=out).log_().add_(largest)
