"""A text in the tokens of two models on a terminal, one above the other, chunk by chunk."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ..alignment.text_audit import ChunkPieces
from ..report.page import visible_token


_LABELS = ("student ", "teacher ")


def print_chunks(chunks: Sequence[ChunkPieces], console: Console, *, most_lines: int = 6) -> None:
    """Print the first lines of a text.

    Args:
        chunks: The text.
        console: Where to.
        most_lines: Pairs of lines, the student's and the teacher's.
    """
    console.print(
        Text.assemble(
            ("one token on either side", "green"),
            ", ",
            ("several", "yellow"),
            ", ",
            ("dropped", "red"),
            "; | parts the tokens of a chunk",
        )
    )
    lines = list(_lines(chunks, console.width - len(_LABELS[0])))
    for pair in lines[:most_lines]:
        for label, line in zip(_LABELS, pair, strict=True):
            console.print(Text(label, "dim") + line, no_wrap=True, overflow="crop")
        console.print()
    if len(lines) > most_lines:
        console.print(Text(f"and {len(lines) - most_lines} more lines", "dim"))


def _lines(chunks: Sequence[ChunkPieces], width: int) -> Iterator[tuple[Text, Text]]:
    line, used = (Text(), Text()), 0
    for chunk in chunks:
        cells = ["|".join(map(visible_token, pieces)) for pieces in (chunk.student, chunk.teacher)]
        size = max(map(cell_len, cells))
        if used and used + size + 1 > width:
            yield line
            line, used = (Text(), Text()), 0
        for text, cell in zip(line, cells, strict=True):
            text.append(cell + " " * (size - cell_len(cell)), _style(chunk))
            text.append(" ")
        used += size + 1
    if used:
        yield line


def _style(chunk: ChunkPieces) -> str:
    if chunk.reason is not None:
        return "red"
    return "green" if len(chunk.student) == len(chunk.teacher) == 1 else "yellow"
