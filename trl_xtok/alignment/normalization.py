"""Which parts of a text survive a tokenizer's normalizer, and where they are afterwards.

The normalizer is only ever called, never looked into, and the offsets it reports are not used: the library loses count
where it deletes or composes characters. Instead the text is cut into parts that normalize on their own; that they do
is checked against the whole.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Literal, NamedTuple


class Region(NamedTuple):
    """A stretch of the original text and what became of it.

    Attributes:
        original: Length in bytes before normalization.
        normalized: Length in bytes after it; 0 if the stretch was deleted.
        kind: `same` bytes, `equivalent` text (canonically, as Unicode defines it), or `changed` text.
    """

    original: int
    normalized: int
    kind: Literal["same", "equivalent", "changed"]


_WORD = re.compile(r"\s+|\S+")


def correspond(original: str, normalized: str, normalize: Callable[[str], str]) -> list[Region]:
    """Regions of a text in order; their lengths add up to the two texts.

    Args:
        original: The text.
        normalized: `normalize(original)`.
        normalize: The normalizer. Where it looks beyond a word and its white space, more than necessary counts as
            changed.

    Example:
        >>> correspond("Ab c", "ab c", str.lower)
        [Region(original=1, normalized=1, kind='changed'), Region(original=3, normalized=3, kind='same')]
    """
    if original == normalized:
        return [Region(len(original.encode()), len(normalized.encode()), "same")]
    normalize = cache(normalize)
    regions: list[Region] = []
    for word, result in _fit([(word, normalize(word)) for word in _WORD.findall(original)], normalized):
        parts = [(word, result)]
        if word != result:
            segments = [(part, normalize(part)) for part in _segment_pattern().findall(word)]
            if "".join(part for _, part in segments) == result:
                parts = segments
        for before, after in parts:
            region = _region(before, after)
            if regions and regions[-1].kind == region.kind == "same":
                region = Region(
                    regions[-1].original + region.original, regions[-1].normalized + region.normalized, "same"
                )
                regions.pop()
            regions.append(region)
    return regions


def _region(original: str, normalized: str) -> Region:
    if original == normalized:
        kind = "same"
    elif unicodedata.normalize("NFD", original) == unicodedata.normalize("NFD", normalized):
        kind = "equivalent"
    else:
        kind = "changed"
    return Region(len(original.encode()), len(normalized.encode()), kind)


def _fit(parts: list[tuple[str, str]], normalized: str) -> Iterator[tuple[str, str]]:
    """Parts with their own normalization, made to add up to the normalization of the whole."""
    offset = "".join(result for _, result in parts).find(normalized)
    if offset >= 0:
        # Equal, or stripped at the ends.
        start = -offset
        for part, result in parts:
            end = start + len(result)
            yield part, normalized[max(start, 0) : max(end, 0)]
            start = end
        return
    head, start = 0, 0
    while normalized.startswith(parts[head][1], start):
        start += len(parts[head][1])
        head += 1
    tail, end = len(parts), len(normalized)
    while end - len(parts[tail - 1][1]) >= start and normalized.endswith(parts[tail - 1][1], start, end):
        end -= len(parts[tail - 1][1])
        tail -= 1
    yield from parts[:head]
    yield "".join(part for part, _ in parts[head:tail]), normalized[start:end]
    yield from parts[tail:]


@cache
def _segment_pattern() -> re.Pattern[str]:
    """A character and all that may combine with it; Unicode normalization forms never reach across."""
    joiners = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and final consonants of Hangul
    for code in range(0x300, 0x30000):
        character = chr(code)
        if unicodedata.combining(character):
            joiners.add(code)
        mapping = unicodedata.decomposition(character)
        if mapping and not mapping.startswith("<"):
            joiners.update(map(ord, unicodedata.normalize("NFD", character)[1:]))
    characters = "".join(re.escape(chr(code)) for code in sorted(joiners))
    return re.compile(rf"[\s\S][{characters}]*")
