"""Which tokens of two vocabularies mean the same, or begin the same text.

Where a chunk begins, both models stand at the same byte of the same text, so their next-token distributions can be
compared there once their tokens are mapped to events that both can express.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from .spelling import Spelling
from .text_encoder import TextEncoder


class SharedTokens(NamedTuple):
    """Tokens that spell the same bytes on both sides, pair by pair.

    Attributes:
        student_ids: One token per pair.
        teacher_ids: Its counterpart.
    """

    student_ids: list[int]
    teacher_ids: list[int]


class PrefixClasses(NamedTuple):
    """Classes of tokens that begin the same texts, whichever way a tokenizer cuts them.

    Attributes:
        student_classes: Class of each student token, -1 for tokens in none.
        teacher_classes: The same per teacher token.
        num_classes: Classes are numbered from 0; each has tokens of both sides.
    """

    student_classes: list[int]
    teacher_classes: list[int]
    num_classes: int


def shared_tokens(student: TextEncoder, teacher: TextEncoder, ends: Mapping[int, int]) -> SharedTokens:
    """Pairs of text tokens with equal bytes, and of markers that are no special tokens with equal content.

    Of several tokens with the same bytes the first one counts; a byte's own token (`<0x41>`) stands behind the
    character. A teacher token is in one pair, but for the end of turn.

    Args:
        student: Encodes for the student.
        teacher: Encodes for the teacher.
        ends: Each of the student's stop tokens with the teacher's token for the same event.
    """
    ours, theirs = by_bytes(student), by_bytes(teacher)
    pairs = {ours[piece]: theirs[piece] for piece in ours.keys() & theirs.keys()}
    taken = frozenset(ends.values())
    ordered = sorted(({ours: theirs for ours, theirs in pairs.items() if theirs not in taken} | dict(ends)).items())
    return SharedTokens([pair[0] for pair in ordered], [pair[1] for pair in ordered])


def prefix_classes(student: TextEncoder, teacher: TextEncoder, ends: Mapping[int, int]) -> PrefixClasses:
    """The finest classes in which each token is with the first token that the other side would begin its text with.

    A student's `123`, `12` and `1` are in one class with the `1` of a teacher that writes single digits, so the
    probability of the class does not depend on how the student cuts the number.

    Args:
        student: Encodes for the student.
        teacher: Encodes for the teacher.
        ends: Each of the student's stop tokens with the teacher's token for the same event.
    """
    offset = len(student.table.pieces)
    links = _Links(offset + len(teacher.table.pieces))
    for own, first in _first_tokens(student, teacher):
        links.join(own, offset + first)
    for own, first in _first_tokens(teacher, student):
        links.join(offset + own, first)
    for stop, end in ends.items():
        links.join(stop, offset + end)
    numbers: dict[int, int] = {}
    classes = [numbers.setdefault(root, len(numbers)) if root >= 0 else -1 for root in links.roots()]
    return PrefixClasses(classes[:offset], classes[offset:], len(numbers))


def text_ids(encoder: TextEncoder) -> Iterator[tuple[int, bytes]]:
    """Tokens that spell text; control tokens and empty ones do not."""
    control = frozenset(encoder.table.markers.values())
    for token_id, piece in enumerate(encoder.table.pieces):
        if piece and token_id not in control:
            yield token_id, piece


def by_bytes(encoder: TextEncoder) -> dict[bytes, int]:
    """The token that stands for each text, and after a byte 255 that for each marker that is no special token."""
    byte_ids = frozenset(encoder.table.byte_ids.values())
    # Earlier entries give way to later ones: bytes, then the rest from the last to the first.
    ordered = sorted(text_ids(encoder), key=lambda item: (item[0] not in byte_ids, -item[0]))
    markers = {b"\xff" + content.encode(): token_id for content, token_id in _plain_markers(encoder)}
    return {piece: token_id for token_id, piece in ordered} | markers


def _plain_markers(encoder: TextEncoder) -> Iterator[tuple[str, int]]:
    """Markers that are no special tokens: their content means the same to every model that has them."""
    special = encoder.table.special_ids
    return ((content, token_id) for content, token_id in encoder.table.markers.items() if token_id not in special)


def _first_tokens(of: TextEncoder, by: TextEncoder) -> Iterator[tuple[int, int]]:
    """Each token of one side with the token that the other side begins its bytes with, or its equal."""
    equals = by_bytes(by)
    for content, token_id in _plain_markers(of):
        if (equal := equals.get(b"\xff" + content.encode())) is not None:
            yield token_id, equal
    for token_id, piece in text_ids(of):
        first = equals.get(piece)
        if first is None:
            spelling = Spelling()
            by.spell(piece, spelling)
            first = spelling.ids[0] if spelling.reasons[0] is None else None
        if first is not None:
            yield token_id, first


class _Links:
    """Disjoint sets of numbers; those that were never joined are in none."""

    def __init__(self, size: int):
        self._parents = list(range(size))
        self._joined = bytearray(size)

    def join(self, left: int, right: int) -> None:
        """Put both numbers in one set."""
        self._joined[left] = self._joined[right] = 1
        self._parents[self._root(left)] = self._root(right)

    def roots(self) -> Iterable[int]:
        """The representative of each number's set, -1 for numbers in none."""
        return (self._root(number) if self._joined[number] else -1 for number in range(len(self._parents)))

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number
