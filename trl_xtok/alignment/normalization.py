"""Which parts of a text survive a tokenizer's normalizer, and where they are afterwards.

The normalizer is only ever called, never looked into, and the offsets it reports are not used: the library loses count
where it deletes or composes characters. Instead the text is cut into parts that normalize on their own; that they do
is checked against the whole.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import groupby, product
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


Parts = list[tuple[str, str]]

_WORDS = re.compile(r"(?:\s+|\S+){1,64}")
_WORD = re.compile(r"\s+|\S+")


def correspond(original: str, normalized: str, normalize: Callable[[str], str]) -> list[Region]:
    """Regions of a text in order; their lengths add up to the two texts.

    Args:
        original: The text.
        normalized: `normalize(original)`.
        normalize: The normalizer. If it looks beyond a word and the white space around it, more text than necessary
            counts as changed, but none too little.

    Example:
        >>> correspond("Ab c", "ab c", str.lower)
        [Region(original=1, normalized=1, kind='changed'), Region(original=3, normalized=3, kind='same')]
    """
    normalize = cache(normalize)
    regions: list[Region] = []
    parts = [(part, normalize(part)) for part in _WORDS.findall(original)]
    parts = _refine(_refine(_fit(parts, normalized), _WORD, normalize), _segment(), normalize)
    for is_same, group in groupby(parts, lambda part: part[0] == part[1]):
        if is_same:
            size = len("".join([part for part, _ in group]).encode())
            regions.append(Region(size, size, "same"))
        else:
            regions += [region for part in group for region in _regions(*part)]
    return regions


def _refine(parts: Parts, pattern: re.Pattern[str], normalize: Callable[[str], str]) -> Parts:
    """Cut each part that normalization alters into smaller ones, if they normalize on their own."""
    refined: Parts = []
    for part in parts:
        before, after = part
        smaller = [part] if before == after else [(piece, normalize(piece)) for piece in pattern.findall(before)]
        refined += smaller if "".join([piece for _, piece in smaller]) == after else [part]
    return refined


def _fit(parts: Parts, normalized: str) -> Parts:
    """Parts that add up to the normalization of the whole; what does not is one part in the middle."""
    if "".join(part for _, part in parts) == normalized:
        return parts
    head, start = 0, 0
    while head < len(parts) and normalized.startswith(parts[head][1], start):
        start += len(parts[head][1])
        head += 1
    tail, end = len(parts), len(normalized)
    while tail > head and normalized.endswith(parts[tail - 1][1], start, end):
        end -= len(parts[tail - 1][1])
        tail -= 1
    middle = "".join(part for part, _ in parts[head:tail])
    return [*parts[:head], (middle, normalized[start:end]), *parts[tail:]]


def _regions(original: str, normalized: str) -> list[Region]:
    """One region, or several if equivalent text can be cut so that both halves are equivalent."""
    if original == normalized:
        size = len(original.encode())
        return [Region(size, size, "same")]
    if not _equivalent(original, normalized):
        return [Region(len(original.encode()), len(normalized.encode()), "changed")]
    # Longer runs of marks are no language's spelling, and all cuts are tried.
    if max(len(original), len(normalized)) <= 16:
        for cut, other in product(range(1, len(original)), range(1, len(normalized))):
            if _equivalent(original[:cut], normalized[:other]) and _equivalent(original[cut:], normalized[other:]):
                return [*_regions(original[:cut], normalized[:other]), *_regions(original[cut:], normalized[other:])]
    return [Region(len(original.encode()), len(normalized.encode()), "equivalent")]


def _equivalent(left: str, right: str) -> bool:
    return unicodedata.normalize("NFD", left) == unicodedata.normalize("NFD", right)


@cache
def _segment() -> re.Pattern[str]:
    """A character and all that may combine with it; Unicode normalization forms never reach further."""
    joiners = {*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)}  # vowels and final consonants of Hangul
    for code in range(0x300, 0x30000):
        character = chr(code)
        first, *rest = unicodedata.normalize("NFD", character)
        if unicodedata.combining(first):
            joiners.add(code)
        joiners.update(map(ord, rest))
    characters = "".join(re.escape(chr(code)) for code in sorted(joiners))
    return re.compile(rf"[\s\S][{characters}]*")
