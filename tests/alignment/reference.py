"""The alignment that the definition asks for, computed the obvious way: slow, and independent of the package."""

import json
import unicodedata
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerFast

from tests.conversion import printable_bytes


@cache
def pieces_are_printable_bytes(tokenizer: PreTrainedTokenizerFast) -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    return "ByteLevel" in json.dumps(decoder)


@cache
def added_contents(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    return {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}


@cache
def byte_of_shown() -> dict[str, int]:
    return {shown: byte for byte, shown in printable_bytes().items()}


def token_bytes(tokenizer: PreTrainedTokenizerFast, id: int) -> bytes:
    """What one token of a ByteLevel, SentencePiece or WordPiece tokenizer puts into the text."""
    byte_level = pieces_are_printable_bytes(tokenizer)
    if id in added_contents(tokenizer):
        content = added_contents(tokenizer)[id]
        return (content if byte_level else content.replace("▁", " ")).encode()
    piece = tokenizer.convert_ids_to_tokens(id)
    if tokenizer.mask_token == "[MASK]":
        return piece.removeprefix("##").encode() if piece.startswith("##") else f" {piece}".encode()
    if byte_level:
        return bytes(byte_of_shown()[character] for character in piece)
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def spell(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bytes]:
    return [token_bytes(tokenizer, id) for id in ids]


def canonical(text: bytes) -> str:
    """Equal for two texts that are equal, or canonically equivalent with the same invalid bytes in the same places."""
    # Each invalid byte becomes a lone surrogate, which neither composes with its neighbours nor lets them pass.
    return unicodedata.normalize("NFC", text.decode(errors="surrogateescape"))


def chunks(student: Sequence[bytes], teacher: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Chunk number of every token, if the two sides spell the same text.

    There is a cut after the first i student and j teacher tokens if what stands before is the same text on both sides,
    and what stands after it too.
    """

    def around(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
        ends = range(1, len(tokens) + 1)
        return [(canonical(b"".join(tokens[:end])), canonical(b"".join(tokens[end:]))) for end in ends]

    cuts = [
        (i, j) for i, left in enumerate(around(student)) for j, right in enumerate(around(teacher)) if left == right
    ]
    return (
        [sum(i < index for i, _ in cuts) for index in range(len(student))],
        [sum(j < index for _, j in cuts) for index in range(len(teacher))],
    )


def sizes(student_chunks: Sequence[int], teacher_chunks: Sequence[int]) -> list[tuple[int, int]]:
    """Number of student and teacher tokens of each chunk, in text order."""
    numbers = sorted({*student_chunks, *teacher_chunks} - {-1})
    return [(student_chunks.count(number), teacher_chunks.count(number)) for number in numbers]
