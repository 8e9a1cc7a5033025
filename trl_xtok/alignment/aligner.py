"""From the tokens a student sampled to the same text in the teacher's tokens, and the chunks that both delimit.

The sampled ids are the truth: what the student wrote is read from them, and only the teacher's side is tokenized.
Whatever cannot be aligned is left out of all chunks, with a reason, and alignment goes on at the next common cut.
"""

import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import cast

from transformers import PreTrainedTokenizerBase

from .chunks import cut_chunks
from .lookahead import Lookahead
from .spelling import Spelling
from .templates import end_of_turn_id, stop_ids
from .text_encoder import TextEncoder
from .vocab_map import PrefixClasses, SharedTokens, prefix_classes, shared_tokens


# What is not UTF-8, as Python's `surrogateescape` stands it in a string.
_BAD_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Alignment:
    """A completion in the tokens of student and teacher, cut into chunks.

    A chunk is the shortest stretch of text that both tokenizers delimit. Both sides spell the same bytes in it, or
    canonically equivalent text where the teacher normalizes.

    Attributes:
        teacher_ids: The completion in the teacher's tokens: no prompt, no BOS; the teacher's end-of-turn token last if
            and only if the student's completion ended with a stop token.
        student_chunks: One number per student token: the chunk it is in, -1 = in no chunk.
        teacher_chunks: The same per teacher token.
        num_chunks: Chunks are numbered 0 to num_chunks-1 in text order.
        student_bytes: How many bytes of text each student token contributes; 0 for stop tokens and unknown ids.
        drop_reasons: Why each student token is in no chunk, `None` if it is in one: `unknown_id` (no such token),
            `invalid_utf8` (bytes that the teacher cannot spell), `cut_character` (the completion ends within it),
            `normalized` (the teacher's normalizer changed the text), `unspellable` (the teacher has no token for it),
            `no_teacher_end` (the teacher has no end-of-turn token), `no_text` (a token of zero bytes without a chunk
            to share).
        end_chunk: Number of the chunk of stop token and end-of-turn token, -1 if there is none.
    """

    teacher_ids: list[int]
    student_chunks: list[int]
    teacher_chunks: list[int]
    num_chunks: int
    student_bytes: list[int]
    drop_reasons: list[str | None]
    end_chunk: int

    @property
    def coverage(self) -> float:
        """Share of the student tokens that are in a chunk; 1.0 for an empty completion."""
        return 1 - self.student_chunks.count(-1) / len(self.student_chunks) if self.student_chunks else 1.0

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> number of student tokens that are in no chunk for it."""
        return dict(Counter(reason for reason in self.drop_reasons if reason is not None))


class TokenizerAligner:
    """Aligns completions of one student for one teacher. The tokenizers are read, never changed.

    Args:
        student_tokenizer: The student's fast tokenizer.
        teacher_tokenizer: The teacher's fast tokenizer.
        student_stop_ids: Tokens that end the student's completion; by default its `eos_token_id` and the end of turn
            of its chat template.
        teacher_end_id: Token with which the teacher ends a turn; by default the one its chat template writes, else
            its `eos_token_id`.

    Attributes:
        student_stop_ids: Tokens that end a completion if they stand last.
        teacher_end_id: The teacher's token for the same event; `None` if it has none.
        same_vocabulary: Whether the two vocabularies spell the same bytes id by id. Then every token is its own chunk.

    Raises:
        TokenizerError: If it is not known what the tokens of one of the tokenizers spell.
    """

    def __init__(
        self,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        *,
        student_stop_ids: Iterable[int] | None = None,
        teacher_end_id: int | None = None,
    ):
        # Without Unicode forms the student's own encoding of a text spells the very bytes it sampled.
        self._student = TextEncoder(student_tokenizer, unicode_forms=False)
        self._teacher = TextEncoder(teacher_tokenizer)
        self.same_vocabulary = self._student.table.pieces == self._teacher.table.pieces
        self.student_stop_ids = frozenset(
            stop_ids(student_tokenizer) if student_stop_ids is None else student_stop_ids
        )
        self.teacher_end_id = end_of_turn_id(teacher_tokenizer) if teacher_end_id is None else teacher_end_id
        self._ends: dict[int, int | None] = dict.fromkeys(self.student_stop_ids, self.teacher_end_id)
        if self.same_vocabulary and teacher_end_id is None:
            self._ends |= {stop: stop for stop in self.student_stop_ids & stop_ids(teacher_tokenizer)}
        self._twins = self._find_twins(teacher_tokenizer)

    def align(self, student_ids: Sequence[int]) -> Alignment:
        """Align a completion, exactly as it was sampled and with its stop token if one was sampled; any ids will do.

        Example:
            Qwen's "2024" is `2|0|2|4`, Llama's is `202|4`: chunk numbers `[0, 0, 0, 1]` against `[0, 1]`.
        """
        student_ids = [*map(operator.index, student_ids)]
        pieces = self._student.table.spell_all(student_ids)
        reasons = [None if piece is not None else "unknown_id" for piece in pieces]
        pairs = [*map(self._twins.get, student_ids)]
        finished = self._is_finished(student_ids)
        if finished:
            pieces[-1], pairs[-1] = b"", self._ends[student_ids[-1]]
            reasons[-1] = "no_teacher_end" if pairs[-1] is None else None
        return _align(pieces, pairs, reasons, self._teacher, finished)

    def canonical(self, student_ids: Sequence[int]) -> Alignment:
        """Align a completion with the student's own encoding of the same text, which stands in `teacher_ids`.

        The two are equal if and only if the sampled tokenization is canonical. Markers and special tokens that were
        sampled, unknown ids, and tokens with bytes that are not UTF-8 keep their ids; what stands between them is
        encoded.
        """
        student_ids = [*map(operator.index, student_ids)]
        pieces = self._student.table.spell_all(student_ids)
        kept = frozenset(self._student.table.markers.values())
        pairs = [
            token_id if piece is None or token_id in kept else None
            for token_id, piece in zip(student_ids, pieces, strict=True)
        ]
        finished = self._is_finished(student_ids)
        if finished:
            pieces[-1], pairs[-1] = b"", student_ids[-1]
        for is_text, run in _runs([pair is None for pair in pairs]):
            if is_text:
                for index in _with_bad_bytes(pieces, run):
                    pairs[index] = student_ids[index]
        return _align(pieces, pairs, [None] * len(pieces), self._student, finished)

    def student_ids(self, text: str) -> list[int]:
        """The student's own tokens for a text that goes on where other text ended.

        Special strings in it stay text. What the student cannot spell is left out.
        """
        spelling = Spelling()
        self._student.spell(text.encode(), spelling)
        return [token_id for token_id in spelling.ids if token_id is not None]

    def without_start(self, student_ids: Sequence[int], start: str) -> list[int]:
        """The ids without a text that they begin with; what is left of the token in which it ends is encoded anew.

        They stay as they are if they begin with another text, or what is left of that token cannot be encoded.
        """
        student_ids, missing = [*map(operator.index, student_ids)], start.encode()
        for place, piece in enumerate(self._student.table.spell_all(student_ids)):
            if piece is not None and piece.startswith(missing):
                rest = Spelling()
                self._student.spell(piece[len(missing) :], rest)
                ids = [token_id for token_id in rest.ids if token_id is not None]
                return student_ids if any(rest.reasons) else ids + student_ids[place + 1 :]
            if piece is None or not missing.startswith(piece):
                break
            missing = missing[len(piece) :]
        return student_ids

    def blank_chunks(self, student_ids: Sequence[int], alignment: Alignment) -> frozenset[int]:
        """Chunks of `alignment`, which is that of `student_ids`, that are nothing but white space."""
        texts = [b""] * alignment.num_chunks
        pieces = self._student.table.spell_all([*map(operator.index, student_ids)])
        for chunk, piece in zip(alignment.student_chunks, pieces, strict=True):
            if chunk >= 0:
                texts[chunk] += piece or b""
        blank = (chunk for chunk, text in enumerate(texts) if text.decode("utf-8", "replace").isspace())
        return frozenset(blank) - {alignment.end_chunk}

    def shared_tokens(self) -> SharedTokens:
        """Pairs of tokens that spell the same bytes; see [`vocab_map.shared_tokens`]."""
        return shared_tokens(self._student, self._teacher, self._paired_ends())

    def prefix_classes(self) -> PrefixClasses:
        """Classes of tokens that begin the same texts; see [`vocab_map.prefix_classes`]. Takes seconds."""
        return prefix_classes(self._student, self._teacher, self._paired_ends())

    def undoing(self, teacher_id: int) -> list[int]:
        """Student tokens that, written next, can undo the cut behind a teacher token; see [`Lookahead`]."""
        return self._lookahead.undoing(teacher_id)

    @cached_property
    def _lookahead(self) -> Lookahead:
        return Lookahead(self._student, self._teacher)

    def _paired_ends(self) -> dict[int, int]:
        return {stop: end for stop, end in self._ends.items() if end is not None}

    def _is_finished(self, student_ids: Sequence[int]) -> bool:
        return len(student_ids) > 0 and student_ids[-1] in self.student_stop_ids

    def _find_twins(self, teacher_tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
        """Student tokens that mean one teacher token, whatever stands around them."""
        student, teacher = self._student.table, self._teacher.table
        if self.same_vocabulary:
            return {token_id: token_id for token_id, piece in enumerate(student.pieces) if piece is not None}
        # A marker may mean more to the teacher than to the student, but it must not begin or end a text.
        names = (teacher_tokenizer.bos_token_id, teacher_tokenizer.eos_token_id, teacher_tokenizer.unk_token_id)
        taken = {self.teacher_end_id, *cast("tuple[int | None, ...]", names)}
        return {
            token_id: teacher.markers[content]
            for content, token_id in student.markers.items()
            if token_id not in student.special_ids
            and content in teacher.markers
            and teacher.markers[content] not in taken
        }


def _align(
    pieces: list[bytes | None],
    pairs: list[int | None],
    reasons: list[str | None],
    encoder: TextEncoder,
    finished: bool,
) -> Alignment:
    """Spell what stands between paired tokens with the encoder's tokens, and cut both sides into chunks.

    Args:
        pieces: Bytes of each student token.
        pairs: The one token on the other side that a student token goes with; `None` for all others.
        reasons: Why a student token cannot be in a chunk; what stands before and after it is spelled apart.
        encoder: Encodes for the other side.
        finished: The last student token is a stop token.
    """
    spelling = Spelling()
    ends: list[int] = []
    for is_text, run in _runs([pair is None and not reason for pair, reason in zip(pairs, reasons, strict=True)]):
        if is_text:
            text = [piece or b"" for piece in pieces[run.start : run.stop]]
            start = spelling.end
            ends.extend(start + end for end in accumulate(map(len, text)))
            encoder.spell(b"".join(text), spelling, unfinished=run.stop == len(pieces) and not finished)
        else:
            for index in run:
                # A chunk by itself, whatever the two tokens of a pair spell, so it counts as one byte on both sides.
                spelling.add(pairs[index], spelling.end + 1, reasons[index])
                ends.append(spelling.end)

    chunks, other_chunks, num_chunks = cut_chunks(ends, spelling.ends)
    broken = {-1: "no_text"}
    for chunk, reason in zip(other_chunks, spelling.reasons, strict=True):
        if reason is not None:
            broken.setdefault(chunk, reason)
    sound = [chunk not in broken for chunk in range(num_chunks)]
    # The last entry is that of chunk -1.
    number = [index - 1 if kept else -1 for index, kept in zip(accumulate(sound), sound, strict=True)] + [-1]
    return Alignment(
        teacher_ids=[token_id for token_id in spelling.ids if token_id is not None],
        student_chunks=[number[chunk] for chunk in chunks],
        teacher_chunks=[
            number[chunk] for token_id, chunk in zip(spelling.ids, other_chunks, strict=True) if token_id is not None
        ],
        num_chunks=sum(sound),
        student_bytes=[len(piece or b"") for piece in pieces],
        drop_reasons=[broken.get(chunk) for chunk in chunks],
        end_chunk=number[chunks[-1]] if finished else -1,
    )


def _runs(flags: Iterable[bool]) -> Iterator[tuple[bool, range]]:
    """Neighbours with the same flag."""
    start = 0
    for flag, group in groupby(flags):
        end = start + sum(1 for _ in group)
        yield flag, range(start, end)
        start = end


def _with_bad_bytes(pieces: Sequence[bytes | None], run: range) -> list[int]:
    """Tokens of a run that share a character, directly or through others, with bytes that are not UTF-8."""
    text = [piece or b"" for piece in pieces[run.start : run.stop]]
    characters = b"".join(text).decode(errors="surrogateescape")
    if not _BAD_BYTE.search(characters):
        return []
    token_ends = list(accumulate(map(len, text)))
    character_ends = list(accumulate(len(character.encode(errors="surrogateescape")) for character in characters))
    token_chunks, character_chunks, _ = cut_chunks(token_ends, character_ends)
    bad = {chunk for character, chunk in zip(characters, character_chunks, strict=True) if _BAD_BYTE.match(character)}
    return [index for index, chunk in zip(run, token_chunks, strict=True) if chunk in bad]
