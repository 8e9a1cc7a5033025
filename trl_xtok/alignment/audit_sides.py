"""What one tokenizer is: its kind, what it does to a text before it cuts it, and how its model ends a turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerBase

from .spelling import Spelling
from .templates import end_of_turn_id, leading_ids, stop_ids
from .text_encoder import TextEncoder
from .token_bytes import components, fast_tokenizer, steps, token_bytes


@dataclass(frozen=True, slots=True)
class TokenizerSide:
    """One of the two tokenizers.

    Attributes:
        name: Its name or path.
        kind: How it cuts a text, in words, for example `SentencePiece BPE with byte fallback`.
        tokens: How many ids have a token.
        special_tokens: How many of them are special.
        added_tokens: How many were added to the model's vocabulary, special or not.
        normalizers: What it does to a text before it cuts it, beside marking spaces.
        altered: The sample texts that this changes for good, so that the tokens spell another text.
        has_chat_template: Whether it has a chat template, its own or one that was given.
        leading: Tokens that it puts before every text, usually BOS or nothing.
        end_of_turn: The token with which its model ends a turn; `None` if it has none.
        stops: Tokens that end a completion.
    """

    name: str
    kind: str
    tokens: int
    special_tokens: int
    added_tokens: int
    normalizers: tuple[str, ...]
    altered: tuple[str, ...]
    has_chat_template: bool
    leading: tuple[str, ...]
    end_of_turn: str | None
    stops: tuple[str, ...]


def describe_side(
    tokenizer: PreTrainedTokenizerBase, samples: Mapping[str, str], chat_template: str | None = None
) -> TokenizerSide:
    """What a tokenizer is.

    Args:
        tokenizer: A fast tokenizer.
        samples: Texts on which its normalizer is tried.
        chat_template: A template instead of its own.

    Raises:
        TokenizerError: If it is not a fast one, or it is not known what its tokens spell.
    """
    table, encoder = token_bytes(tokenizer), TextEncoder(tokenizer)
    added = fast_tokenizer(tokenizer).backend_tokenizer.get_added_tokens_decoder()
    end = end_of_turn_id(tokenizer, chat_template=chat_template)
    return TokenizerSide(
        name=str(cast(Any, tokenizer).name_or_path),
        kind=_kind(tokenizer),
        tokens=sum(piece is not None for piece in table.pieces),
        special_tokens=len(table.special_ids),
        added_tokens=len(added),
        normalizers=_normalizers(tokenizer),
        altered=tuple(name for name, text in samples.items() if _is_altered(encoder, text)),
        has_chat_template=chat_template is not None or cast(Any, tokenizer).chat_template is not None,
        leading=_contents(tokenizer, leading_ids(tokenizer)),
        end_of_turn=None if end is None else _contents(tokenizer, [end])[0],
        stops=_contents(tokenizer, sorted(stop_ids(tokenizer, chat_template=chat_template))),
    )


@dataclass(frozen=True, slots=True)
class VocabularyRelation:
    """What two vocabularies have in common, by the bytes that their text tokens spell.

    Attributes:
        name: `equal` (the same bytes id by id), `same tokens` (with other ids), `student within teacher`, `teacher
            within student`, `overlap`, or `disjoint`.
        shared: Number of texts for which both have a token.
        student_share: Share of the student's texts that these are.
        teacher_share: Share of the teacher's.
    """

    name: str
    shared: int
    student_share: float
    teacher_share: float


def relate(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> VocabularyRelation:
    """Compare two vocabularies; special tokens and other markers are left out."""
    ours, theirs = _texts(student), _texts(teacher)
    shared = len(ours & theirs)
    if token_bytes(student).pieces == token_bytes(teacher).pieces:
        name = "equal"
    elif ours == theirs:
        name = "same tokens"
    elif ours < theirs:
        name = "student within teacher"
    elif theirs < ours:
        name = "teacher within student"
    else:
        name = "overlap" if shared else "disjoint"
    return VocabularyRelation(name, shared, shared / max(len(ours), 1), shared / max(len(theirs), 1))


@dataclass(frozen=True, slots=True)
class AddedTokens:
    """Tokens that mean something rather than spell a text: special tokens, and others such as `<think>`.

    Attributes:
        shared: Contents that both have.
        student_only: Contents that only the student has.
        teacher_only: Contents that only the teacher has.
        special: Those of them that are special tokens on one side at least.
    """

    shared: tuple[str, ...]
    student_only: tuple[str, ...]
    teacher_only: tuple[str, ...]
    special: frozenset[str]


def compare_added(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> AddedTokens:
    """Compare what two tokenizers have beside text tokens, in the order of their ids."""
    ours, theirs = token_bytes(student), token_bytes(teacher)
    special = {
        content
        for table in (ours, theirs)
        for content, token_id in table.markers.items()
        if token_id in table.special_ids
    }
    return AddedTokens(
        tuple(content for content in ours.markers if content in theirs.markers),
        tuple(content for content in ours.markers if content not in theirs.markers),
        tuple(content for content in theirs.markers if content not in ours.markers),
        frozenset(special),
    )


def _texts(tokenizer: PreTrainedTokenizerBase) -> set[bytes]:
    table = token_bytes(tokenizer)
    markers = frozenset(table.markers.values())
    return {piece for token_id, piece in enumerate(table.pieces) if piece and token_id not in markers}


def _contents(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> tuple[str, ...]:
    return tuple(cast("list[str]", tokenizer.convert_ids_to_tokens(ids)))


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    tokenizer = fast_tokenizer(tokenizer)
    model = tokenizer.backend_tokenizer.model
    decoder = [step["type"] for step in steps(components(tokenizer)["decoder"], "decoders")]
    if isinstance(model, WordPiece):
        return "WordPiece"
    name = "BPE" if isinstance(model, BPE) else "Unigram" if isinstance(model, Unigram) else type(model).__name__
    if decoder == ["ByteLevel"]:
        return f"ByteLevel {name}"
    return f"SentencePiece {name}" + (" with byte fallback" if "ByteFallback" in decoder else "")


def _normalizers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    found = steps(components(fast_tokenizer(tokenizer))["normalizer"], "normalizers")
    # These write the text in another alphabet, or put a space before it that no completion gets.
    marks = [step for step in found if step["type"] in ("ByteLevel", "Prepend") or step.get("content") == "▁"]
    return tuple(step["type"] for step in found if step not in marks)


def _is_altered(encoder: TextEncoder, text: str) -> bool:
    spelling = Spelling()
    encoder.spell(text.encode(), spelling)
    return "normalized" in spelling.reasons
