"""What TRL's model card does not know: who taught, and how."""

import os
import re
import textwrap
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


PAPER = {
    "title": "Breaking the Tokenizer Barrier: On-Policy Distillation across Model Families",
    "id": "2606.09456",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @article{niu2026breaking,
            title        = {{Breaking the Tokenizer Barrier: On-Policy Distillation across Model Families}},
            author       = {Yifan Niu and Han Xiao and Dongyi Liu and Zelong Wang and Dihong Gong and Yasheng Wang
                            and Jia Li},
            year         = 2026,
            eprint       = {arXiv:2606.09456},
        }"""),
}
# Stands once in the card of TRL, which lists versions below it.
VERSIONS = "### Framework versions\n\n"
# A name of the Hub with its owner, and no path.
_OF_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def add_teachers(card: Path, teachers: Sequence[str], objective: str) -> None:
    """Name the teacher, or the teachers, in a model card.

    Args:
        card: The file that TRL wrote.
        teachers: Name or path of each; empty if it has none. Of a path only the last part is told.
        objective: What was minimised.
    """
    said = ("The teacher was " if len(teachers) == 1 else "The teachers were ") + ", ".join(map(_link, teachers))
    teaching = f"{said}; what was minimised is the objective `{objective}`.\n\n"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace(VERSIONS, f"{teaching}{VERSIONS}- trl-xtok: {own_version()}\n"), encoding="utf-8")


def _link(teacher: str) -> str:
    is_local = os.path.isdir(teacher) or os.path.isabs(teacher)
    if not is_local and _OF_THE_HUB.fullmatch(teacher):
        return f"[{teacher}](https://huggingface.co/{teacher})"
    # What a server says may be any text.
    name = " ".join((Path(teacher).name if is_local else teacher).replace("`", "").split())
    return f"`{name}`" if name else "a model without a name"


def own_version() -> str:
    """The version of this package, "unknown" where it is run from its sources."""
    try:
        return version("trl-xtok")
    except PackageNotFoundError:
        return "unknown"
