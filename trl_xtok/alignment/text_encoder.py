"""Text to tokens, with the byte at which each token ends.

Everything goes through a private pipeline around the tokenizer's own model, so the tokenizer of the caller is never
changed, whatever its truncation, padding or added tokens are. Text stays text: what spells a special token or a marker
is split, never matched. No space is added in front, because a completion goes on where the prompt ended.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Model, Unigram, WordLevel
from transformers import PreTrainedTokenizerBase

from .normalization import Region, correspond
from .token_bytes import Steps, components, fast_tokenizer, steps, token_bytes


_UNICODE_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


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


class TextEncoder:
    """Encodes text for one model.

    Args:
        tokenizer: Its tokenizer.
        unicode_forms: Whether to apply Unicode normalization forms where the tokenizer does. Without them the tokens
            of such a tokenizer spell exactly the bytes of the text.

    Raises:
        TokenizerError: If it is not known what the tokens of this tokenizer spell.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, unicode_forms: bool = True):
        tokenizer = fast_tokenizer(tokenizer)
        self.table = token_bytes(tokenizer)
        model, json_parts = tokenizer.backend_tokenizer.model, components(tokenizer)
        frame = Tokenizer.from_str(json.dumps(json_parts | _text_pipeline(json_parts, unicode_forms)))
        self._normalizer = frame.normalizer
        self._model = Tokenizer(_deterministic(model))
        if frame.pre_tokenizer is not None:
            self._model.pre_tokenizer = frame.pre_tokenizer

        mark = self.table.space_mark
        # In the vocabulary the mark is a space, so a mark in the text can be spelled in bytes only.
        self._not_text = re.compile(f"([\udc80-\udcff{mark}]+)")
        self._control_ids = frozenset(self.table.markers.values())
        self._literals = {token_id: content for content, token_id in self.table.markers.items()}
        self._literals |= {token_id: f"<0x{byte:02X}>" for byte, token_id in self.table.byte_ids.items()}
        self._text_ids = list(self.table.text_tokens.values())
        self._text_tokens = Tokenizer(WordLevel({"": 0}, unk_token=""))
        self._text_tokens.add_tokens([AddedToken(content, normalized=False) for content in self.table.text_tokens])

    def spell(self, text: bytes, spelling: Spelling, *, unfinished: bool = False) -> None:
        """Append the tokens of a text.

        Args:
            text: Any bytes. What is not UTF-8 is spelled with the tokens of single bytes if there are such tokens.
            spelling: Tokens of what stands before, encoded apart.
            unfinished: The text may end within a character, which is then left out.
        """
        cut = len(text) - (_unfinished_bytes(text) if unfinished else 0)
        parts = self._not_text.split(text[:cut].decode(errors="surrogateescape"))
        for index, part in enumerate(parts):
            if index % 2 == 0:
                self._spell_text(part, spelling)
                continue
            for character in part:
                reason = "unspellable" if character == self.table.space_mark else "invalid_utf8"
                for byte in character.encode(errors="surrogateescape"):
                    token_id = self.table.byte_ids.get(byte)
                    spelling.add(token_id, spelling.end + 1, reason if token_id is None else None)
        if cut < len(text):
            spelling.add(None, spelling.end + len(text) - cut, "cut_character")

    def _spell_text(self, text: str, spelling: Spelling) -> None:
        """Cut out the added tokens that are ordinary text, and give the rest to the model."""
        if not text:
            return
        if not self._text_ids:
            self._spell_with_model(text, spelling)
            return
        encoding = self._text_tokens.encode(text, add_special_tokens=False)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id == 0:
                self._spell_with_model(text[start:end], spelling)
            else:
                spelling.add(self._text_ids[token_id - 1], spelling.end + len(text[start:end].encode()))

    def _spell_with_model(self, text: str, spelling: Spelling) -> None:
        normalized = self._normalize(text)
        ids = self._model.encode(normalized, add_special_tokens=False).ids
        pieces = [self.table.pieces[token_id] or b"" for token_id in ids]
        if b"".join(pieces) == text.encode() and self._control_ids.isdisjoint(ids):
            start = spelling.end
            spelling.ids.extend(ids)
            spelling.ends.extend(start + end for end in accumulate(map(len, pieces)))
            spelling.reasons.extend([None] * len(ids))
            return
        regions = correspond(
            text, self._without_marks(normalized), lambda part: self._without_marks(self._normalize(part))
        )
        _place(self._walk(normalized), regions, spelling)

    def _normalize(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.normalize_str(text)

    def _without_marks(self, normalized: str) -> str:
        return normalized.replace(self.table.space_mark, " ") if self.table.space_mark else normalized

    def _walk(self, normalized: str) -> Iterator["_Placed"]:
        """Tokens of a normalized text and the bytes of it that each spells; what none spells comes without an id."""
        text = self._without_marks(normalized)
        offsets = list(accumulate((len(character.encode()) for character in text), initial=0))
        spelled, position = text.encode(), 0
        for token_id, start, end in self._tokens(normalized):
            piece = self.table.pieces[token_id] or b""
            begin = max(position, offsets[start])
            if self.table.joins_words and not spelled.startswith(piece, begin):
                # The space that starts a word belongs to it, if there is one.
                begin, piece = (position, piece) if spelled.startswith(piece, position) else (begin, piece.lstrip())
            if position < begin:
                # White space that separates words may be left out by design.
                reason = "normalized" if spelled[position:begin].isspace() else "unspellable"
                yield _Placed(None, position, begin, reason)
            fits = spelled.startswith(piece, begin) and (token_id not in self._control_ids or end - start == 1)
            position = begin + len(piece) if fits else max(begin, offsets[end])
            yield _Placed(token_id, begin, position, None if fits else "unspellable")
        if position < len(spelled):
            yield _Placed(None, position, len(spelled), "unspellable")

    def _tokens(self, normalized: str, offset: int = 0) -> Iterator[tuple[int, int, int]]:
        """Token ids with the characters they stand for; text that spells a token which is not text is split."""
        encoding = self._model.encode(normalized, add_special_tokens=False)
        tokens = list(zip(encoding.ids, encoding.offsets, strict=True))
        cuts = [
            start + 1
            for token_id, (start, end) in tokens
            if end - start > 1 and self._literals.get(token_id) == normalized[start:end]
        ]
        if not cuts:
            yield from ((token_id, offset + start, offset + end) for token_id, (start, end) in tokens)
            return
        for start, end in zip([0, *cuts], [*cuts, len(normalized)], strict=True):
            yield from self._tokens(normalized[start:end], offset + start)


@dataclass(frozen=True, slots=True)
class _Placed:
    token_id: int | None
    start: int
    end: int
    reason: str | None


def _place(tokens: Iterator[_Placed], regions: list[Region], spelling: Spelling) -> None:
    """Carry tokens of the normalized text over to the original text."""
    first, base = len(spelling.ids), spelling.end
    index, original, normalized = 0, 0, 0
    for token in tokens:
        while index < len(regions) and normalized + regions[index].normalized <= token.start:
            original += regions[index].original
            if normalized == token.start:
                # Nothing is left of the region, so no token spells it.
                spelling.add(None, base + original, "normalized")
            normalized += regions[index].normalized
            index += 1
        end, reason = _carry(token, regions, index, original, normalized)
        spelling.add(token.token_id, -1 if end is None else base + end, reason)
    for region in regions[index:]:
        original += region.original
        if not region.normalized:
            spelling.add(None, base + original, "normalized")
    for item in reversed(range(first, len(spelling.ids))):
        if spelling.ends[item] < 0:
            spelling.ends[item] = spelling.ends[item + 1]


def _carry(
    token: _Placed, regions: list[Region], index: int, original: int, normalized: int
) -> tuple[int | None, str | None]:
    """Where a token of the normalized text ends in the original text, and why it does not spell it."""
    reason, end = token.reason, original + token.start - normalized
    while index < len(regions) and normalized < token.end:
        region = regions[index]
        if region.kind == "changed":
            reason = "normalized"
        end = original + token.end - normalized if region.kind == "same" else None
        original, normalized, index = original + region.original, normalized + region.normalized, index + 1
    return (original if normalized == token.end else end), reason


def _text_pipeline(parts: dict[str, Any], unicode_forms: bool) -> dict[str, Any]:
    """Normalizer and pre-tokenizer for text that goes on where other text ended."""
    normalizers: Steps = []
    pre_tokenizers: Steps = []
    for step in steps(parts["normalizer"], "normalizers"):
        if step["type"] == "ByteLevel":
            # The same step, but after the text has been compared with its normalization.
            pre_tokenizers.append(
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
            )
        elif step["type"] != "Prepend" and (unicode_forms or step["type"] not in _UNICODE_FORMS):
            normalizers.append(step)
    for step in steps(parts["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
            if pre_tokenizers and pre_tokenizers[-1]["type"] == "WhitespaceSplit":
                # It takes the spaces out and the prefix of each word puts them back, one for each run.
                pre_tokenizers.pop()
                normalizers.append({"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "})
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        pre_tokenizers.append(step)
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers} if pre_tokenizers else None,
    }


def _deterministic(model: Model) -> Model:
    """The model itself, which is shared, or a copy that does not sample its segmentation."""
    if isinstance(model, BPE) and model.dropout:
        model = deepcopy(model)
        model.dropout = None
    elif isinstance(model, Unigram) and (model.alpha or model.nbest_size):
        model = deepcopy(model)
        model.alpha = model.nbest_size = None
    return model


def _unfinished_bytes(text: bytes) -> int:
    """Length of the beginning of a character at the end of a text."""
    for length in range(1, min(3, len(text)) + 1):
        try:
            text[-length:].decode()
        except UnicodeDecodeError as error:
            if error.start == 0 and error.reason == "unexpected end of data":
                return length
    return 0
