"""Where a tokenizer cuts a text can depend on what follows, while a student writes its tokens one after the other."""

from bisect import bisect_right
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
        self._student, self._whole = student, by_bytes(student).keys()
        self._teacher_pieces = dict(text_ids(teacher))
        self._sorted = sorted(set(self._teacher_pieces.values()))
        self._found: dict[int, list[int]] = {}

    def undoing(self, teacher_id: int) -> list[int]:
        """Student tokens that, written next, can undo the cut behind a teacher token.

        They go on with a longer token of the teacher that begins with this one, where the student's own spelling of
        that token ends a token at the same byte.
        """
        found = self._found.get(teacher_id)
        if found is None:
            piece = self._teacher_pieces.get(teacher_id)
            found = self._found[teacher_id] = [] if piece is None else sorted(self._search(piece))
        return found

    def _search(self, piece: bytes) -> set[int]:
        behind = islice(self._sorted, bisect_right(self._sorted, piece), None)
        found = set[int]()
        for longer in takewhile(lambda text: text.startswith(piece), behind):
            if longer not in self._whole:
                spelling = Spelling()
                self._student.spell(longer, spelling)
                if len(piece) in spelling.ends[:-1] and not any(spelling.reasons):
                    next_id = spelling.ids[spelling.ends.index(len(piece)) + 1]
                    found |= {next_id} if next_id is not None else set()
        return found
