"""An audit on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .audit import TokenizerAudit
from .audit_sides import AddedTokens, TokenizerSide, VocabularyRelation
from .text_audit import REASONS, TextAudit


_STYLES = {"same vocabulary": "cyan", "good": "green", "usable": "yellow", "unusable": "red"}
_RELATIONS = {
    "equal": "the same bytes id by id",
    "same tokens": "the same tokens with other ids",
    "student within teacher": "the teacher has all of the student's tokens and more",
    "teacher within student": "the student has all of the teacher's tokens and more",
    "overlap": "some tokens in common",
    "disjoint": "no token in common",
}
# Names that are shown of a longer list.
_SHOWN = 6


def print_audit(audit: TokenizerAudit, console: Console) -> None:
    """Print an audit; contents of tokens are data and never markup."""
    console.print(_sides(audit.student, audit.teacher))
    for line in (describe_vocabulary(audit.vocabulary), *describe_added(audit.added)):
        console.print(Text(line))
    console.print(_texts("Samples", audit.samples))
    if audit.texts:
        console.print(_texts("Your texts", [*audit.texts, audit.total]))
    dropped = {reason for text in (*audit.samples, *audit.texts) for reason in text.dropped}
    for reason in sorted(dropped):
        console.print(Text(f"{reason}: {REASONS[reason]}", "dim"))
    console.print()
    console.print(Text.assemble(("Verdict: ", "bold"), (audit.verdict, _STYLES[audit.level])))
    for warning in audit.warnings:
        console.print(Text.assemble(("- ", "yellow"), warning))


def describe_vocabulary(relation: VocabularyRelation) -> str:
    """The relation of the vocabularies in a sentence."""
    return (
        f"Vocabularies: {_RELATIONS[relation.name]}; {relation.shared:,} texts are a token of both "
        f"({relation.student_share:.0%} of the student's, {relation.teacher_share:.0%} of the teacher's)."
    )


def describe_added(added: AddedTokens) -> list[str]:
    """What the two have beside text tokens, in three lines."""
    groups = {"both": added.shared, "student only": added.student_only, "teacher only": added.teacher_only}
    return [f"Special and marker tokens, {name}: {_listed(contents)}" for name, contents in groups.items()]


def side_rows(student: TokenizerSide, teacher: TokenizerSide) -> list[tuple[str, str, str]]:
    """Label, student and teacher of everything that is said of both."""
    return [(label, ours, theirs) for (label, ours), (_, theirs) in zip(_facts(student), _facts(teacher), strict=True)]


def text_cells(text: TextAudit) -> list[str]:
    """Name and figures of a text, in the order of `TEXT_COLUMNS`."""
    dropped = ", ".join(f"{count} {reason}" for reason, count in text.dropped.items()) or "-"
    sizes = f"{text.student_tokens} / {text.teacher_tokens}"
    shares = f"{text.coverage:.1%}", f"{text.one_to_one_share:.0%}", f"{text.tokens_per_chunk:.2f}"
    return [text.name, sizes, *shares, dropped]


TEXT_COLUMNS = ("text", "tokens", "coverage", "1:1", "per chunk", "dropped")


def _facts(side: TokenizerSide) -> list[tuple[str, str]]:
    return [
        ("name", side.name or "-"),
        ("kind", side.kind),
        ("tokens", f"{side.tokens:,} ({side.added_tokens:,} added, {side.special_tokens:,} special)"),
        ("normalizers", ", ".join(side.normalizers) or "none"),
        ("texts it changes", ", ".join(side.altered) or "none"),
        ("chat template", "yes" if side.has_chat_template else "no"),
        ("before a text", " ".join(side.leading) or "nothing"),
        ("ends a turn with", side.end_of_turn or "nothing"),
        ("stop tokens", " ".join(side.stops) or "none"),
    ]


def _sides(student: TokenizerSide, teacher: TokenizerSide) -> Table:
    table = Table("", title="Tokenizers", title_justify="left")
    for side in ("student", "teacher"):
        # Names of folders have no place to break.
        table.add_column(side, overflow="fold")
    for label, *values in side_rows(student, teacher):
        table.add_row(label, *map(Text, values))
    return table


def _texts(title: str, texts: Sequence[TextAudit]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in TEXT_COLUMNS:
        table.add_column(column, justify="left" if column in ("text", "dropped") else "right", no_wrap=column == "1:1")
    for text in texts:
        style = None if text.coverage >= 0.99 else "yellow" if text.coverage >= 0.9 else "red"
        name, sizes, coverage, *rest = text_cells(text)
        table.add_row(Text(name), sizes, Text(coverage, style or ""), *rest)
    return table


def _listed(contents: Sequence[str]) -> str:
    more = f" and {len(contents) - _SHOWN:,} more" if len(contents) > _SHOWN else ""
    return f"{len(contents):,}" + (f": {' '.join(contents[:_SHOWN])}{more}" if contents else "")
