"""Where a tokenizer cuts a text can depend on what follows, while a student writes its tokens one after the other."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

from .spelling import Spelling
from .text_encoder import TextEncoder
from .vocab_map import by_bytes, text_ids


class Lookahead:
    """Knows how a text would have gone on if the teacher had not cut it where it did.

    A teacher with the token `-two` cuts behind the hyphen of `forty-` only where no `two` follows. A student that
    spells `-`, `two` has written the hyphen before it says so: the cut tells what the student wrote next.

    Args:
        student: Encodes for the student.
        teacher: Encodes for the teacher.
    """

    def __init__(self, student: TextEncoder, teacher: TextEncoder):
        self._student, self._teacher, self._whole = student, teacher, by_bytes(student)
        self._marks = sorted(text for text in self._whole if not _has_letters(text))
        self._teacher_pieces = dict(text_ids(teacher))
        self._sorted = sorted(set(self._teacher_pieces.values()))
        self._found: dict[int, list[int]] = {}

    def undoing(self, teacher_id: int) -> list[int]:
        """Student tokens that, written next, can undo the cut behind a teacher token.

        They go on with a longer token of the teacher that begins with this one, where the student's own spelling of
        that token ends a token at the same byte. White space and punctuation may go on beyond that token: of longer
        student tokens of nothing else that begin so, those count before which the teacher does not cut. Words that go
        on would have to be tried by the thousand; they are left out, and so is what undoes a cut together with
        earlier tokens.
        """
        found = self._found.get(teacher_id)
        if found is None:
            piece = self._teacher_pieces.get(teacher_id)
            found = self._found[teacher_id] = [] if piece is None else sorted(self._search(piece))
        return found

    def _search(self, piece: bytes) -> set[int]:
        found, beyond = set[int](), set[bytes]()
        for longer in _that_begin_with(piece, self._sorted):
            rest = longer[len(piece) :]
            if not _has_letters(rest):
                beyond.update(_that_begin_with(rest, self._marks))
            if longer not in self._whole:
                spelling = Spelling()
                self._student.spell(longer, spelling)
                if len(piece) in spelling.ends[:-1] and not any(spelling.reasons):
                    next_id = spelling.ids[spelling.ends.index(len(piece)) + 1]
                    found |= {next_id} if next_id is not None else set()
        return found | {self._whole[text] for text in beyond if self._undoes(piece, text)}

    def _undoes(self, piece: bytes, text: bytes) -> bool:
        """Whether the teacher does not cut between the two, but the student does."""
        theirs, ours = Spelling(), Spelling()
        self._teacher.spell(piece + text, theirs)
        if len(piece) in theirs.ends or any(theirs.reasons):
            return False
        self._student.spell(piece + text, ours)
        return ours.ends[-2:-1] == [len(piece)]


def _that_begin_with(start: bytes, ordered: Sequence[bytes]) -> Iterator[bytes]:
    """Longer texts with this beginning."""
    behind = islice(ordered, bisect_right(ordered, start), None)
    return takewhile(lambda text: text.startswith(start), behind)


def _has_letters(text: bytes) -> bool:
    """Whether there is anything but white space and punctuation; what is not ASCII counts as letters."""
    return any(byte >= 128 or chr(byte).isalnum() for byte in text)
