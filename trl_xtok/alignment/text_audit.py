"""How a text fares between two tokenizers: counts of its tokens and chunks, and the chunks themselves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from .aligner import Alignment, TokenizerAligner
from .token_bytes import TokenBytes, token_bytes


# Why student tokens are in no chunk; the keys are those of `Alignment.drop_reasons`.
REASONS = {
    "unknown_id": "the student's vocabulary has no such token",
    "invalid_utf8": "the student wrote bytes that are no text and that the teacher cannot spell",
    "cut_character": "the text ends within a character",
    "normalized": "the teacher's normalizer changes the text",
    "unspellable": "the teacher has no token for it",
    "no_teacher_end": "the teacher has no token that ends a turn",
    "no_text": "a token without text and without a chunk to share",
}


@dataclass(frozen=True, slots=True)
class TextAudit:
    """How one text fares.

    Attributes:
        name: Its class, or what the caller named it.
        student_tokens: Number of tokens with which the student writes it.
        teacher_tokens: Number of tokens with which the teacher reads it.
        chunks: Number of chunks.
        one_to_one: How many of them are one token on either side.
        covered: Student tokens in a chunk; the others are in `dropped`.
        dropped: Reason -> student tokens in no chunk.
        round_trip: Whether the student's tokens spell exactly this text.
    """

    name: str
    student_tokens: int
    teacher_tokens: int
    chunks: int
    one_to_one: int
    covered: int
    dropped: dict[str, int]
    round_trip: bool

    @property
    def coverage(self) -> float:
        """Share of the student's tokens that are in a chunk."""
        return self.covered / self.student_tokens if self.student_tokens else 1.0

    @property
    def one_to_one_share(self) -> float:
        """Share of the chunks that are one token on either side."""
        return self.one_to_one / self.chunks if self.chunks else 0.0

    @property
    def tokens_per_chunk(self) -> float:
        """Mean number of student tokens in a chunk."""
        return self.covered / self.chunks if self.chunks else 0.0

    @property
    def teacher_ratio(self) -> float:
        """Teacher tokens per student token."""
        return self.teacher_tokens / self.student_tokens if self.student_tokens else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it, with the shares."""
        shares = ("coverage", "one_to_one_share", "tokens_per_chunk", "teacher_ratio")
        return asdict(self) | {name: round(getattr(self, name), 6) for name in shares}


@dataclass(frozen=True, slots=True)
class ChunkPieces:
    """One chunk of a text, or student tokens that are in none.

    Attributes:
        student: Bytes of each student token.
        teacher: Bytes of each teacher token.
        reason: Why it is no chunk, `None` if it is one.
    """

    student: tuple[bytes, ...]
    teacher: tuple[bytes, ...]
    reason: str | None


def chunk_pieces(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, text: str) -> list[ChunkPieces]:
    """A text as both sides cut it, chunk by chunk."""
    aligner = TokenizerAligner(student, teacher)
    ids = aligner.student_ids(text)
    alignment = aligner.align(ids)
    ours, theirs = token_bytes(student), token_bytes(teacher)
    runs = [
        (chunk, tuple(theirs.spell(alignment.teacher_ids[place]) or b"" for place in places))
        for chunk, places in groupby(range(len(alignment.teacher_ids)), key=alignment.teacher_chunks.__getitem__)
    ]
    rows: list[ChunkPieces] = []

    def key(place: int) -> tuple[int, str | None]:
        return alignment.student_chunks[place], alignment.drop_reasons[place]

    for (chunk, reason), places in groupby(range(len(ids)), key=key):
        pieces = tuple(ours.spell(ids[place]) or b"" for place in places)
        # Teacher tokens in no chunk stand beside the student tokens in none that come first.
        others = runs.pop(0)[1] if runs and runs[0][0] == chunk else ()
        rows.append(ChunkPieces(pieces, others, reason))
    return rows


def audit_text(aligner: TokenizerAligner, table: TokenBytes, name: str, text: str) -> TextAudit:
    """Count what becomes of a text.

    Args:
        aligner: Knows both tokenizers.
        table: What the student's tokens spell.
        name: What the text is called.
        text: The text.
    """
    ids = aligner.student_ids(text)
    alignment = aligner.align(ids)
    return TextAudit(
        name=name,
        student_tokens=len(ids),
        teacher_tokens=len(alignment.teacher_ids),
        chunks=alignment.num_chunks,
        one_to_one=_one_to_one(alignment),
        covered=len(ids) - alignment.student_chunks.count(-1),
        dropped=alignment.dropped,
        round_trip=b"".join(piece or b"" for piece in table.spell_all(ids)) == text.encode(),
    )


def _one_to_one(alignment: Alignment) -> int:
    ours, theirs = Counter(alignment.student_chunks), Counter(alignment.teacher_chunks)
    return sum(ours[chunk] == theirs[chunk] == 1 for chunk in range(alignment.num_chunks))


def add_up(name: str, texts: Sequence[TextAudit]) -> TextAudit:
    """All texts together."""
    dropped = sum((Counter(text.dropped) for text in texts), Counter[str]())
    counts = ("student_tokens", "teacher_tokens", "chunks", "one_to_one", "covered")
    sums = {count: sum(cast(int, getattr(text, count)) for text in texts) for count in counts}
    return TextAudit(name=name, **sums, dropped=dict(dropped), round_trip=all(text.round_trip for text in texts))
