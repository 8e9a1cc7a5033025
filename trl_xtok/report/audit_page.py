"""An audit of two tokenizers as a self-contained page."""

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from ..alignment.audit import TokenizerAudit
from ..alignment.audit_table import TEXT_COLUMNS, describe_added, describe_vocabulary, side_rows, text_cells
from ..alignment.text_audit import REASONS, ChunkPieces, TextAudit
from .page import Section, render_page, visible_text, visible_token


_CLASSES = {"same vocabulary": "good", "good": "good", "usable": "fair", "unusable": "poor"}
# Chunks of a text that are drawn; a dataset has more than anyone looks at.
_MOST_CHUNKS = 2000
_STYLE = """
.chunks { display: flex; flex-wrap: wrap; gap: 0.5rem 0.25rem; font-family: var(--mono); font-size: 0.85rem; }
.chunks > span { display: grid; border-radius: 4px; padding: 0 0.25rem; border-block-end: 3px solid var(--line); }
.chunks > .one { border-color: var(--good); }
.chunks > .several { border-color: var(--fair); }
.chunks > .dropped { border-color: var(--poor); }
.chunks b { font-weight: 400; white-space: pre-wrap; unicode-bidi: isolate; }
.chunks b + b::before { content: "|"; color: var(--soft); }
.chunks .teacher { color: var(--soft); }
"""


def audit_page(audit: TokenizerAudit, shown: Mapping[str, Sequence[ChunkPieces]]) -> str:
    """The HTML of an audit.

    Args:
        audit: What to show.
        shown: Texts by name, to be drawn chunk by chunk.
    """
    sections = [
        Section("Verdict", _verdict(audit)),
        Section("Tokenizers", _sides(audit)),
        Section("Samples", _texts(audit.samples)),
    ]
    if audit.texts:
        sections.insert(1, Section("Your texts", _texts([*audit.texts, audit.total])))
    if shown:
        sections.append(Section("Chunks", Markup("").join(_chunks(name, pieces) for name, pieces in shown.items())))
    names = (side.name or "a tokenizer without a name" for side in (audit.student, audit.teacher))
    lead = "Student {}, teacher {}.".format(*map(visible_text, names))
    return render_page("Tokenizer audit", sections, lead=lead, style=_STYLE)


def _verdict(audit: TokenizerAudit) -> Markup:
    body = Markup('<p class="{}"><strong>{}</strong></p>').format(_CLASSES[audit.level], _prose(audit.verdict))
    if not audit.warnings:
        return body
    return body + _list(map(_prose, audit.warnings))


def _sides(audit: TokenizerAudit) -> Markup:
    rows = [
        (label, visible_text(ours), visible_text(theirs))
        for label, ours, theirs in side_rows(audit.student, audit.teacher)
    ]
    lines = [describe_vocabulary(audit.vocabulary), *describe_added(audit.added)]
    return _table(("", "student", "teacher"), rows) + _list(map(Markup.escape, map(visible_text, lines)))


def _texts(texts: Sequence[TextAudit]) -> Markup:
    reasons = sorted({reason for text in texts for reason in text.dropped})
    body = _table(TEXT_COLUMNS, map(text_cells, texts), numbers=range(1, 5))
    return body + _list(map(_prose, (f"{reason}: {REASONS[reason]}" for reason in reasons))) if reasons else body


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> Markup:
    classes = dict.fromkeys(numbers, Markup(' class="number"'))
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(classes.get(place, ""), name) for place, name in enumerate(columns)
    )
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            visible_text(row[0]),
            Markup("").join(
                Markup("<td{}>{}</td>").format(classes.get(place, ""), visible_text(cell))
                for place, cell in enumerate(row[1:], start=1)
            ),
        )
        for row in rows
    )
    return Markup(
        '<div class="scroll" tabindex="0"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, body)


def _list(lines: Iterable[Markup]) -> Markup:
    return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(line) for line in lines))


def _prose(text: str) -> Markup:
    """A sentence, in which what stands between backticks is code."""
    kinds = (Markup("{}"), Markup("<code>{}</code>"))
    pieces = enumerate(text.split("`"))
    return Markup("").join(kinds[place % 2].format(visible_text(piece)) for place, piece in pieces)


def _chunks(name: str, chunks: Sequence[ChunkPieces]) -> Markup:
    drawn = Markup("").join(map(_chunk, chunks[:_MOST_CHUNKS]))
    more = len(chunks) - _MOST_CHUNKS
    rest = Markup('<p class="soft">and {} more chunks</p>').format(f"{more:,}") if more > 0 else ""
    return Markup('<h3>{}</h3><div class="chunks">{}</div>{}').format(visible_text(name), drawn, rest)


def _chunk(chunk: ChunkPieces) -> Markup:
    one = len(chunk.student) == len(chunk.teacher) == 1
    kind = "dropped" if chunk.reason else "one" if one else "several"
    title = REASONS[chunk.reason] if chunk.reason else f"{len(chunk.student)} to {len(chunk.teacher)} tokens"
    lines = (
        Markup('<span class="{}">{}</span>').format(
            side, Markup("").join(Markup("<b>{}</b>").format(visible_token(piece)) for piece in pieces)
        )
        for side, pieces in (("student", chunk.student), ("teacher", chunk.teacher))
    )
    return Markup('<span class="{}" title="{}">{}</span>').format(kind, title, Markup("").join(lines))
