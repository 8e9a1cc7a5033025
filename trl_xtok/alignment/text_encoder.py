"""Text to tokens, with the byte at which each token ends.

Everything goes through a private pipeline around the tokenizer's own model, so the tokenizer of the caller is never
changed, whatever its truncation, padding or added tokens are. Text stays text: what spells a special token or a marker
is split, never matched. No space is added in front, because a completion goes on where the prompt ended.
"""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.models import BPE, Model, Unigram, WordLevel
from transformers import PreTrainedTokenizerBase

from .normalization import Region, correspond
from .spelling import Spelling, carry_over
from .token_bytes import Steps, components, fast_tokenizer, steps, token_bytes


_UNICODE_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


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
        strips = [step for step in steps(json_parts["normalizer"], "normalizers") if step["type"] == "Strip"]
        self._strips = any(step["strip_left"] for step in strips), any(step["strip_right"] for step in strips)
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
        self._text_tokens.add_tokens(  # pyright: ignore[reportUnknownMemberType]
            [AddedToken(content, normalized=False) for content in self.table.text_tokens]
        )

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
        """Normalize and encode text, and find the bytes of the text that each token spells."""
        left, core, right = self._stripped(text)
        normalized = self._normalize(core)
        result = self._without_marks(normalized)
        encoding = self._model.encode(normalized, add_special_tokens=False)
        ids = encoding.ids
        pieces = [self.table.pieces[token_id] or b"" for token_id in ids]
        if b"".join(pieces) == result.encode() and self._control_ids.isdisjoint(ids):
            tokens = Spelling(list[int | None](ids), list(accumulate(map(len, pieces))), [None] * len(ids))
        else:
            tokens = self._walk(normalized, encoding)
        if text != result:
            regions = correspond(core, result, lambda part: self._without_marks(self._normalize(part)))
            # The lengths of what was stripped; nothing is left of it.
            head, tail = [[Region(len(part.encode()), 0, "changed")] if part else [] for part in (left, right)]
            tokens = carry_over(tokens, [*head, *regions, *tail])
        spelling.extend(tokens)

    def _stripped(self, text: str) -> tuple[str, str, str]:
        kept = text.lstrip() if self._strips[0] else text
        core = kept.rstrip() if self._strips[1] else kept
        return text[: len(text) - len(kept)], core, kept[len(core) :]

    def _normalize(self, text: str) -> str:
        return text if self._normalizer is None else self._normalizer.normalize_str(text)

    def _without_marks(self, normalized: str) -> str:
        return normalized.replace(self.table.space_mark, " ") if self.table.space_mark else normalized

    def _walk(self, normalized: str, encoding: Encoding) -> Spelling:
        """Tokens of a normalized text whose tokens or white space do not simply add up to it."""
        text = self._without_marks(normalized)
        spelled, offsets = text.encode(), list(accumulate(map(len, map(str.encode, text)), initial=0))
        tokens = Spelling()
        done = 0
        for token_id, start, end in self._tokens(normalized, encoding):
            piece = self.table.pieces[token_id] or b""
            begin = max(done, offsets[start])
            if self.table.joins_words and not spelled.startswith(piece, begin):
                # The space that starts a word belongs to it, if there is one.
                begin, piece = (done, piece) if spelled.startswith(piece, done) else (begin, piece.lstrip())
            if done < begin:
                tokens.add(None, begin, _reason_for_hole(spelled[done:begin]))
            if spelled.startswith(piece, begin) and (token_id not in self._control_ids or end - start == 1):
                done = begin + len(piece)
                tokens.add(token_id, done)
            else:
                done = max(begin, offsets[end])
                tokens.add(token_id, done, "unspellable")
        if done < len(spelled):
            tokens.add(None, len(spelled), _reason_for_hole(spelled[done:]))
        return tokens

    def _tokens(self, normalized: str, encoding: Encoding, offset: int = 0) -> Iterator[tuple[int, int, int]]:
        """Token ids with the characters they stand for; text that spells a token which is not text is split."""
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
            part = normalized[start:end]
            yield from self._tokens(part, self._model.encode(part, add_special_tokens=False), offset + start)


def _reason_for_hole(text: bytes) -> str:
    # White space between words may be left out by design; anything else the model has no token for.
    return "normalized" if text.isspace() else "unspellable"


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
        elif step["type"] not in ("Prepend", "Strip") and (unicode_forms or step["type"] not in _UNICODE_FORMS):
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
