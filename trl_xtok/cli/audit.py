"""`trl-xtok audit`: what to expect of a pair of tokenizers."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .output import as_text, write_output


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "audit",
        help="what to expect of a pair of tokenizers",
        description="Say how two tokenizers relate, which share of a text the student can be trained on with this "
        "teacher, what is dropped and why, and which objective fits. Reads tokenizers only, no weights.",
    )
    parser.add_argument("student", metavar="STUDENT", help="name or folder of the student")
    parser.add_argument("teacher", metavar="TEACHER", help="name or folder of the teacher")
    texts = parser.add_argument_group("texts of your own, which the verdict is then about")
    texts.add_argument(
        "--text", action="append", default=[], metavar="TEXT", help="a text; may be given several times"
    )
    texts.add_argument("--file", action="append", default=[], metavar="PATH", help="a text file; several times, too")
    texts.add_argument("--dataset", metavar="NAME_OR_PATH", help="a dataset: a name, a file, or a saved folder")
    texts.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    texts.add_argument("--column", help="column to read; by default `completion`, `messages`, `text` or `prompt`")
    texts.add_argument("--rows", type=int, default=200, help="rows to read (default: %(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format", choices=("rich", "json", "html"), default="rich", help="for reading or for programs"
    )
    output.add_argument("--output", metavar="PATH", help="file to write instead of the terminal; html needs one")
    models = parser.add_argument_group("models")
    models.add_argument("--chat_template_path", help="Jinja file with the student's chat template")
    models.add_argument("--teacher_chat_template_path", help="Jinja file with the teacher's chat template")
    models.add_argument("--min_coverage", type=float, default=0.5, help="as for training (default: %(default)s)")
    models.add_argument("--trust_remote_code", action="store_true", help="run code that a model brings along")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit and print."""
    if args.rows < 1:
        raise ConfigError(f"`--rows {args.rows}` leaves nothing to read. Give at least 1.")
    if not 0 <= args.min_coverage <= 1:
        raise ConfigError(f"`--min_coverage` is a share and must be in [0, 1], got {args.min_coverage}.")
    if args.format == "html" and not args.output:
        raise ConfigError("`--format html` writes a file. Say which one with `--output audit.html`.")
    texts = _read_texts(args)

    from ..alignment.audit import audit_tokenizers
    from ..alignment.templates import load_chat_template
    from ..alignment.text_audit import chunk_pieces
    from .tokenizers import load_tokenizer

    student, teacher = (
        load_tokenizer(name, trust_remote_code=args.trust_remote_code) for name in (args.student, args.teacher)
    )
    templates = {
        name: None if path is None else load_chat_template(path)
        for name, path in (
            ("chat_template", args.chat_template_path),
            ("teacher_chat_template", args.teacher_chat_template_path),
        )
    }
    audit = audit_tokenizers(student, teacher, texts=texts or None, min_coverage=args.min_coverage, **templates)
    if args.format == "json":
        _put(args.output, json.dumps(audit.to_dict(), ensure_ascii=False, indent=1) + "\n", "audit.json")
        return 0
    if args.format == "html":
        from ..report.audit_page import audit_page

        shown = {name: chunk_pieces(student, teacher, text) for name, text in texts.items()}
        _put(args.output, audit_page(audit, shown), "audit.html")
        return 0
    shown = [chunk_pieces(student, teacher, text) for text in args.text]
    if args.output is None:
        from rich.console import Console

        _show(audit, shown, Console())
    else:
        _put(args.output, as_text(lambda console: _show(audit, shown, console), 120), "audit.txt")
    return 0


def _read_texts(args: argparse.Namespace) -> dict[str, str]:
    from .audit_texts import read_dataset, read_file

    if blank := [text for text in args.text if not text]:
        raise ConfigError(f"`--text {blank[0]!r}` is empty, so there is nothing to align. Give a text.")
    texts = {f"text {number}" if number > 1 else "text": text for number, text in enumerate(args.text, start=1)}
    texts |= {name: read_file(name) for name in args.file}
    if args.dataset is not None:
        texts |= read_dataset(args.dataset, split=args.split, column=args.column, rows=args.rows)
    elif args.column is not None:
        raise ConfigError(f"`--column {args.column}` is about a dataset, and none is given. Add `--dataset`.")
    return texts


def _show(audit: Any, shown: list[Any], console: Any) -> None:
    from ..alignment.audit_table import print_audit
    from .chunk_view import print_chunks

    print_audit(audit, console)
    for chunks in shown:
        console.print()
        print_chunks(chunks, console)


def _put(path: str | None, content: str, example: str) -> None:
    if path is None:
        print(content, end="")
        return
    write_output(Path(path), content, example=example)
    print(f"Written: {path}")
