"""Events that two vocabularies have in common, and how the tokens of one of them make them up."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..errors import ModelError
from .torch_logps import slices


# Stretches of a tile that are compared with each other, line by line.
STRETCHES = 32


class Normalizer(NamedTuple):
    """What turns logits into log-probs; as one number it would lose digits where all logits are large.

    Attributes:
        largest: The largest logit.
        log_total: Log of the sum of the exponentials, relative to that of the largest logit.
    """

    largest: Float[Tensor, " rows"]
    log_total: Float[Tensor, " rows"]


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
        ModelError: If columns or classes are empty, or not as many; or if classes are given without their number, out
            of order, or out of its range.
    """

    columns: Int[Tensor, " tokens"] | None = None
    classes: Int[Tensor, " tokens"] | None = None
    num_events: int | None = None
    # Where each class begins among the tokens, also on the host.
    _class_starts: tuple[Tensor, Tensor] | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, tokens in (("columns", self.columns), ("classes", self.classes)):
            if tokens is not None and len(tokens) == 0:
                raise ModelError(f"`{name}` is empty: no token makes up an event. Give at least one token.")
        if self.classes is None:
            return
        if self.columns is not None and len(self.columns) != len(self.classes):
            raise ModelError(
                f"{len(self.columns)} `columns` have {len(self.classes)} `classes`. Give each column its class."
            )
        in_range = self.num_events is not None and 0 <= int(self.classes[0]) <= int(self.classes[-1]) < self.num_events
        if not in_range or not bool((self.classes.diff() >= 0).all()):
            raise ModelError(
                f"Classes run from {self.classes.min()} to {self.classes.max()} of num_events={self.num_events}. "
                "Number them from 0, give their number, sort the tokens by class, and leave tokens without a class "
                "out of `columns`."
            )
        starts = torch.searchsorted(self.classes, torch.arange(self._num_classes + 1, device=self.classes.device))
        object.__setattr__(self, "_class_starts", (starts, starts.cpu()))

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

    def normalize_(self, logits: Float[Tensor, "vocab rows"], memory: Float[Tensor, "tile rows"]) -> Normalizer:
        """Turn logits into scores of tokens, as many lines at a time as `memory` has.

        Scores are the logits of the tokens that take part, but their probabilities where events are classes. The other
        tokens become impossible.
        """
        if self.columns is not None and len(self.columns) < len(logits):
            idle = torch.ones(len(logits), dtype=torch.bool, device=logits.device).index_fill_(0, self.columns, False)
            # They could be so likely that all others vanish beside them.
            logits.index_fill_(0, idle.nonzero().squeeze(1), -torch.inf)
        # Numbers that are kept one by one between tiles would leave holes where no further tile fits.
        largest, sums = logits.new_empty(2, -(-len(logits) // len(memory)), logits.shape[1])
        for most, total, lines in zip(largest, sums, _tiles(logits, len(memory)), strict=True):
            _amax(lines, out=most).clamp_(min=torch.finfo(lines.dtype).min)
            terms = torch.sub(lines, most, out=memory[: len(lines)] if self.classes is None else lines)
            torch.sum(terms.exp_(), 0, out=total)
        top = largest.amax(0)
        factors = largest.sub_(top).exp_()
        total = sums.mul_(factors).sum(0)
        if self.classes is not None:
            for factor, lines in zip(factors.div_(total), _tiles(logits, len(memory)), strict=True):
                lines.mul_(factor)
        return Normalizer(top, total.log_())

    def gather(
        self, scores: Float[Tensor, "vocab rows"], events: slice, *, out: Float[Tensor, "events rows"]
    ) -> Float[Tensor, "events rows"]:
        """Scores of some events, in `out` if they are not a view; probabilities of classes end at 1e-38."""
        if self._class_starts is None:
            return scores[events] if self.columns is None else _take(scores, self.columns[events], out)
        starts, on_host = self._class_starts
        first, end = int(on_host[events.start]), int(on_host[events.stop])
        tokens = torch.arange(first, end, device=scores.device) if self.columns is None else self.columns[first:end]
        sums = embedding_bag(tokens, scores, starts[events] - first, mode="sum")
        return torch.clamp(sums, min=torch.finfo(sums.dtype).tiny, out=out)

    def logps_(
        self,
        event_scores: Float[Tensor, "events rows"],
        normalizer: Normalizer,
        *,
        out: Float[Tensor, "events rows"],
        probabilities: Float[Tensor, "events rows"],
    ) -> None:
        """Write the log-probs of events whose scores were gathered to `out`, and their probabilities.

        The probabilities may take the place of the scores; those of classes are where they were gathered to.
        """
        if self.classes is None:
            torch.sub(event_scores, normalizer.largest, out=out).sub_(normalizer.log_total)
            torch.exp(out, out=probabilities)
        else:
            torch.log(event_scores, out=out)

    def pull_(
        self,
        scores: Float[Tensor, "vocab rows"],
        normalizer: Normalizer,
        event_pulls: Float[Tensor, "events rows"],
        totals: Float[Tensor, " rows"],
        memory: Float[Tensor, "2 tile rows"],
    ) -> None:
        """Turn scores into `probability * (event_pulls - totals)` where events are classes, else into
        `event_pulls - probability * totals`; 0 for tokens that take no part.
        """
        if self.classes is None:
            factor = -totals * normalizer.log_total.neg().exp()
            for lines in _tiles(scores, memory.shape[1]):
                lines.sub_(normalizer.largest).exp_().mul_(factor)
            if self.columns is None:
                scores.add_(event_pulls)
                return
            # All at once it would take memory of its own.
            for part in slices(len(self.columns), memory.shape[1]):
                scores.index_add_(0, self.columns[part], event_pulls[part])
            return
        for part in slices(len(self.classes), memory.shape[1]):
            weights = _take(event_pulls, self.classes[part], memory[0]).sub_(totals)
            if self.columns is None:
                scores[part].mul_(weights)
            else:
                tokens = self.columns[part]
                scores.index_copy_(0, tokens, weights.mul_(_take(scores, tokens, memory[1])))


def _tiles(lines: Tensor, size: int) -> Iterator[Tensor]:
    """Views of so many lines."""
    return (lines[part] for part in slices(len(lines), size))


def _take(
    lines: Float[Tensor, "lines rows"], ids: Int[Tensor, " taken"], memory: Float[Tensor, "tile rows"]
) -> Float[Tensor, "taken rows"]:
    """Copies of some lines; new memory for each tile would cost more than the copies."""
    return torch.index_select(lines, 0, ids, out=memory[: len(ids)])


def _amax(lines: Float[Tensor, "lines rows"], *, out: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """`lines.amax(0)` in a quarter of the time: rows are too few to be compared many at once."""
    share, rows = len(lines) // STRETCHES, lines.shape[1]
    end = share * STRETCHES
    winners = lines[:end].view(STRETCHES, share * rows).amax(0).view(share, rows)
    return torch.amax(torch.cat([winners, lines[end:]]), 0, out=out)
