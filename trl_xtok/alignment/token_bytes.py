"""The exact bytes that each token id of a tokenizer contributes to a text.

They are read from the vocabulary, the kind of decoder and the table of added tokens; never from `decode` or offsets,
which depend on the neighbours of a token and hide invalid UTF-8.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, WordLevel, WordPiece
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import TokenizerError


Steps = list[dict[str, Any]]

# Of several scripts, with what tokenizers treat apart.
PROBE_TEXT = " The quick brown fox jumps over 13 lazy dogs.\n\tdéjà vu, мир, 你好 🙂"
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Words with a bracket or bar (the last in three widths): `<think>`, `[INST]`, `|||IP_ADDRESS|||`, `<dsml:`.
_MARKER = re.compile("(?=.*\\w).*[]<>{}|\uff5c\u2502\u3010\u3011[]", re.DOTALL)
# `<s>` is HTML too (struck-out text), but far more often the start or end of a sequence.
_HTML = re.compile(
    r"</?(a|b|blockquote|body|br|caption|code|dd|div|dl|dt|em|footer|form|h[1-6r]|head|header|html|i|iframe|img|input|li"
    r"|link|meta|nav|ol|option|p|pre|script|section|select|span|strong|style|sub|sup|table|tbody|td|textarea|tfoot|th"
    r"|thead|title|tr|u|ul)/?>"
)


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """What each token of one tokenizer spells.

    Attributes:
        pieces: Bytes of each token id; `None` for ids without a token. Special and other added tokens have the bytes
            of their content, WordPiece tokens that start a word a space before it.
        markers: Content -> id of the added tokens that mean something: special tokens, and others such as `<think>`.
        special_ids: The markers that are special tokens.
        text_tokens: Content -> id of the added tokens that are ordinary text (runs of white space, HTML, words).
        byte_ids: Byte -> id of the token that is this byte alone; `<0xNN>` rather than a character if there are both.
        space_mark: Character that stands for a space in the vocabulary (`▁`), or nothing.
        joins_words: The space before a word is not in the text that the tokenizer reads but implied (WordPiece).
    """

    pieces: list[bytes | None]
    markers: dict[str, int]
    special_ids: frozenset[int]
    text_tokens: dict[str, int]
    byte_ids: dict[int, int]
    space_mark: str
    joins_words: bool

    def spell(self, token_id: int) -> bytes | None:
        """Bytes of one token, `None` if there is no such token."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else None

    def spell_all(self, token_ids: Sequence[int]) -> list[bytes | None]:
        """Bytes of each token."""
        pieces, size = self.pieces, len(self.pieces)
        return [pieces[token_id] if 0 <= token_id < size else None for token_id in token_ids]


_tables: WeakKeyDictionary[PreTrainedTokenizerFast, tuple[object, TokenBytes]] = WeakKeyDictionary()


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Read the table of a tokenizer; it is built once and again only after tokens were added.

    Raises:
        TokenizerError: If the tokenizer is not a fast one, its decoder is of a kind that does not say what a single
            token spells, or the table does not spell a probe text.
    """
    tokenizer = fast_tokenizer(tokenizer)
    backend = tokenizer.backend_tokenizer
    decoder = components(tokenizer)["decoder"]
    added = backend.get_added_tokens_decoder()
    content = (
        backend.get_vocab_size(with_added_tokens=False),
        repr(decoder),
        tokenizer.all_special_tokens,
        [(token_id, token.content, token.special) for token_id, token in added.items()],
    )
    if tokenizer not in _tables or _tables[tokenizer][0] != content:
        table = _build(tokenizer, decoder, added)
        _check_probe(tokenizer, table)
        _tables[tokenizer] = (content, table)
    return _tables[tokenizer][1]


def fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer itself, if it is a fast one.

    Raises:
        TokenizerError: If it is not.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TokenizerError(
            f"{_name(tokenizer)} is not a fast tokenizer, so the bytes of its tokens cannot be read. Load one "
            "that has a `tokenizer.json`, or that `AutoTokenizer` can convert to `PreTrainedTokenizerFast`; of a "
            "processor, pass its `tokenizer`."
        )
    return tokenizer


def components(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Normalizer, pre-tokenizer and decoder of a tokenizer as in its JSON, without the large vocabulary.

    Raises:
        TokenizerError: If one of them is custom Python code.
    """
    backend = tokenizer.backend_tokenizer
    frame = Tokenizer(WordLevel({"": 0}, unk_token=""))
    try:
        if backend.normalizer is not None:
            frame.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            frame.pre_tokenizer = backend.pre_tokenizer
        if backend.decoder is not None:
            frame.decoder = backend.decoder
        return json.loads(frame.to_str())
    # The library raises bare `Exception`.
    except Exception as error:
        raise TokenizerError(
            f"A component of {_name(tokenizer)} cannot be read ({error}), so it is not known what its tokens spell. "
            "Use a tokenizer whose components can be saved as `tokenizer.json`."
        ) from error


def steps(component: Mapping[str, Any] | None, children: str) -> Steps:
    """A component's steps in order, nested sequences opened."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [dict(component)]
    return [step for child in component[children] for step in steps(child, children)]


def _build(tokenizer: PreTrainedTokenizerFast, decoder: Any, added: Mapping[int, AddedToken]) -> TokenBytes:
    backend = tokenizer.backend_tokenizer
    read_piece, read_added, space_mark = _reader(tokenizer, steps(decoder, "decoders"))
    vocab = backend.get_vocab(with_added_tokens=False)
    by_id = {token_id: read_piece(piece) for piece, token_id in vocab.items()}
    byte_ids = {piece[0]: token_id for token_id, piece in by_id.items() if len(piece) == 1}
    for piece, token_id in vocab.items():
        if _BYTE_PIECE.fullmatch(piece) and len(by_id[token_id]) == 1:
            byte_ids[by_id[token_id][0]] = token_id
    for token_id, token in added.items():
        by_id[token_id] = read_added(token.content)
    # An added token may take the place of a byte and spell something else.
    byte_ids = {byte: token_id for byte, token_id in byte_ids.items() if by_id[token_id] == bytes([byte])}
    pieces = [by_id.get(token_id) for token_id in range(max(by_id, default=-1) + 1)]
    for token_id, piece in enumerate(pieces):
        # Unigram vocabularies may list a piece twice; only one of the ids is in the dictionary above.
        if piece is None and (text := backend.id_to_token(token_id)) is not None:
            pieces[token_id] = read_piece(text)

    named = set(tokenizer.all_special_tokens)
    markers: dict[str, int] = {}
    text_tokens: dict[str, int] = {}
    for token_id, token in added.items():
        is_marker = _MARKER.match(token.content) and not _HTML.fullmatch(token.content)
        if token.special or token.content in named or is_marker:
            markers[token.content] = token_id
        # Contents with a space mark are found by the model, which sees the mark where the text has a space.
        elif token.content and by_id[token_id] == token.content.encode():
            text_tokens[token.content] = token_id
    return TokenBytes(
        pieces=pieces,
        markers=markers,
        special_ids=frozenset(token_id for token_id, token in added.items() if token.special),
        text_tokens=text_tokens,
        byte_ids=byte_ids,
        space_mark=space_mark,
        joins_words=any(step["type"] == "WordPiece" for step in steps(decoder, "decoders")),
    )


def _reader(
    tokenizer: PreTrainedTokenizerFast, decoder: Steps
) -> tuple[Callable[[str], bytes], Callable[[str], bytes], str]:
    """How to read the vocabulary's pieces, how the contents of added tokens, and the mark of a space."""
    kinds = [step["type"] for step in decoder]
    if kinds == ["ByteLevel"]:
        return _byte_level_reader(), str.encode, ""
    if kinds == ["WordPiece"]:
        prefix: str = decoder[0]["prefix"]

        def read_word(piece: str) -> bytes:
            return piece.removeprefix(prefix).encode() if piece.startswith(prefix) else f" {piece}".encode()

        return read_word, str.encode, ""

    replacements: list[tuple[str, str]] = []
    for step in decoder:
        if step["type"] == "Metaspace":
            replacements.append((step["replacement"], " "))
        elif step["type"] == "Replace" and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        # `Strip` takes the dummy space off the start of a whole text, and a completion is not one.
        elif step["type"] not in ("ByteFallback", "Fuse") and (step["type"], step.get("content")) != ("Strip", " "):
            replacements.clear()
            break
    if not replacements:
        raise TokenizerError(
            f"{_name(tokenizer)} has the decoder {kinds or None}, which does not say what a single token spells. "
            "Supported are ByteLevel, SentencePiece (Metaspace, or Replace with ByteFallback and Fuse) and WordPiece."
        )
    has_bytes = "ByteFallback" in kinds

    def read_added(content: str) -> bytes:
        for old, new in replacements:
            content = content.replace(old, new)
        return content.encode()

    def read_piece(piece: str) -> bytes:
        if has_bytes and _BYTE_PIECE.fullmatch(piece):
            return bytes([int(piece[3:5], 16)])
        return read_added(piece)

    marks = [old for old, new in replacements if new == " " and len(old) == 1]
    return read_piece, read_added, marks[0] if marks else ""


def _byte_level_reader() -> Callable[[str], bytes]:
    """Undo GPT-2's map of bytes to printable characters."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    byte_of = {byte: byte for byte in shown} | {0x100 + index: byte for index, byte in enumerate(hidden)}
    # Characters below 0x100 that are not in the map would pass for bytes, so they are moved out of Latin-1.
    moved = byte_of | {byte: 0x10000 + byte for byte in hidden}

    def read(piece: str) -> bytes:
        try:
            return piece.translate(moved).encode("latin-1")
        except UnicodeEncodeError:
            # The library's decoder, too, takes a piece with other characters as it is.
            return piece.encode()

    return read


def _check_probe(tokenizer: PreTrainedTokenizerFast, table: TokenBytes) -> None:
    """The pieces that a probe text is cut into must stand in the text, in order."""
    backend = tokenizer.backend_tokenizer
    text = PROBE_TEXT if backend.normalizer is None else backend.normalizer.normalize_str(PROBE_TEXT)
    if table.space_mark:
        text = text.replace(table.space_mark, " ")
    in_bytes = any(step["type"] == "ByteLevel" for step in steps(components(tokenizer)["normalizer"], "normalizers"))
    # Spaces in front, because a tokenizer may add one, and some imply one before every word.
    rest = b"  " + (_byte_level_reader()(text) if in_bytes else text.encode())
    encoding = backend.encode(PROBE_TEXT, add_special_tokens=False)
    unknown = backend.model.unk_token if isinstance(backend.model, BPE | WordPiece) else None
    for token_id, counts in zip(encoding.ids, encoding.attention_mask, strict=True):
        piece = table.spell(token_id)
        if not counts or token_id in table.special_ids or backend.id_to_token(token_id) == unknown:
            continue
        if table.joins_words and piece is not None:
            piece = piece.lstrip()
        if piece is None or piece not in rest:
            raise TokenizerError(
                f"{_name(tokenizer)} encodes {PROBE_TEXT!r} with the token {token_id} "
                f"({backend.id_to_token(token_id)!r}), which was read as {piece!r} and does not stand in the rest of "
                f"the text, {rest.decode(errors='replace')!r}. Its decoder does not belong to its vocabulary; use the "
                "tokenizer as it was published."
            )
        rest = rest[rest.index(piece) + len(piece) :]


def _name(tokenizer: object) -> str:
    path = cast(Any, tokenizer).name_or_path if isinstance(tokenizer, PreTrainedTokenizerBase) else ""
    return f"{type(tokenizer).__name__} {path!r}"
