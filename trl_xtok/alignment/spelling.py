"""Tokens with the byte at which each ends, also where a normalizer stands between them and the text."""

from bisect import bisect_right
from dataclasses import dataclass, field

from .normalization import Region


_NOWHERE = -1


@dataclass(slots=True)
class Spelling:
    """Tokens that spell a text, and the holes that no token spells, in text order.

    Attributes:
        ids: Token id, or `None` for a hole.
        ends: Byte at which the token or hole ends. A token that ends where the text has no byte for it (within an `é`
            that the text writes as two characters) ends where the next one does.
        reasons: Why the token does not spell its stretch of text, or `None` if it does.
    """

    ids: list[int | None] = field(default_factory=list[int | None])
    ends: list[int] = field(default_factory=list[int])
    reasons: list[str | None] = field(default_factory=list[str | None])

    @property
    def end(self) -> int:
        """Number of bytes so far."""
        return self.ends[-1] if self.ends else 0

    def add(self, token_id: int | None, end: int, reason: str | None = None) -> None:
        """Append one token, or a hole."""
        self.ids.append(token_id)
        self.ends.append(end)
        self.reasons.append(reason)

    def extend(self, other: "Spelling") -> None:
        """Append the tokens of a text that follows."""
        start = self.end
        self.ids.extend(other.ids)
        self.ends.extend([start + end for end in other.ends])
        self.reasons.extend(other.reasons)


def carry_over(tokens: Spelling, regions: list[Region]) -> Spelling:
    """Tokens of a normalized text, carried over to the original text.

    Tokens that share bytes with changed text get the reason `normalized`. So does the hole that stands for deleted
    text, if it was deleted between tokens.
    """
    carried = Spelling()
    index, original, normalized = 0, 0, 0
    torn = False  # the token at `index` has begun in changed text
    for region in regions:
        original, normalized = original + region.original, normalized + region.normalized
        stop = bisect_right(tokens.ends, normalized, lo=index) if region.normalized else index
        begun = stop < len(tokens.ends) and (tokens.ends[stop - 1] if stop else 0) < normalized
        ended = tokens.ends[index:stop]
        reasons = tokens.reasons[index:stop]
        if region.kind == "changed":
            reasons = ["normalized"] * len(reasons)
        elif torn and ended:
            reasons[0] = "normalized"
        if region.kind == "same":
            carried.ends.extend([end + original - normalized for end in ended])
        else:
            carried.ends.extend([original if end == normalized else _NOWHERE for end in ended])
        carried.ids.extend(tokens.ids[index:stop])
        carried.reasons.extend(reasons)
        if not region.normalized and not begun:
            carried.add(None, original, "normalized")
        torn = begun and (region.kind == "changed" or (torn and not ended))
        index = stop
    for item in reversed(range(len(carried.ends))):
        if carried.ends[item] == _NOWHERE:
            carried.ends[item] = carried.ends[item + 1]
    return carried
