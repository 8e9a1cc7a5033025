"""Carry one sentence through every layer, and print the tables of the page that explains how it works.

    python -m examples.how_it_works
    python -m examples.how_it_works --page docs/how_it_works.md

With `--page` the tables between the marks of that page are replaced. The models are those of the demo, in float32; the
completion is given, so the figures are the same on every run.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.chunk_diagram import TEXT
from trl_xtok import Alignment, TokenizerAligner
from trl_xtok.alignment.token_bytes import token_bytes
from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.objectives import Credit, chunk_advantages, chunk_rkl, sum_by_chunk
from trl_xtok.report.page import visible_token
from trl_xtok.training.scoring import completion_logps, pack


PROMPT = "Dessert of the day:\n"
RULES = get_args(Credit)


@dataclass(frozen=True, slots=True)
class Side:
    """A model and its tokenizer."""

    tokenizer: AutoTokenizer
    model: AutoModelForCausalLM

    @classmethod
    def load(cls, name: str) -> "Side":
        """One of the demo's models, in float32."""
        path = demo_model_path(name)
        return cls(AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval())

    def labels(self, ids: Sequence[int]) -> list[str]:
        """How the tokens are shown: text, bytes of a cut character, or the name of a special token."""
        table = token_bytes(self.tokenizer)
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [
            code(name if token in table.special_ids else visible_token(table.spell(token) or b""))
            for token, name in zip(ids, names, strict=True)
        ]

    @torch.no_grad()
    def logps(self, ids: list[int]) -> Tensor:
        """Log-prob of each token of a completion after the prompt."""
        prompt = self.tokenizer(PROMPT)["input_ids"] or [self.tokenizer.bos_token_id]
        return completion_logps(self.model, pack([prompt], [ids], torch.device("cpu")))


@dataclass(frozen=True, slots=True)
class Sentence:
    """The completion on both sides, with its log-probs."""

    student: Side
    teacher: Side
    ids: list[int]
    alignment: Alignment
    student_logps: Tensor
    teacher_logps: Tensor

    @classmethod
    def carry(cls, student: Side, teacher: Side) -> "Sentence":
        """Spell the text as the student does, end its turn, align, and score both sides."""
        ids = [*student.tokenizer(TEXT, add_special_tokens=False)["input_ids"], student.tokenizer.eos_token_id]
        alignment = TokenizerAligner(student.tokenizer, teacher.tokenizer).align(ids)
        return cls(student, teacher, ids, alignment, student.logps(ids), teacher.logps(alignment.teacher_ids))

    def chunk_logps(self) -> tuple[Tensor, Tensor]:
        """`L_S` and `L_T` of each chunk."""
        sides = (
            (self.student_logps, self.alignment.student_chunks),
            (self.teacher_logps, self.alignment.teacher_chunks),
        )
        return tuple(sum_by_chunk(logps, torch.tensor(chunks), self.alignment.num_chunks) for logps, chunks in sides)

    def advantages(self, rule: Credit) -> Tensor:
        """The advantage of each student token under a rule."""
        chunks = torch.tensor(self.alignment.student_chunks)
        return chunk_advantages(self.student_logps, self.chunk_logps()[1], chunks, rule)


def code(text: str) -> str:
    """Text as code in a table, whose columns a bar would end."""
    return f"`{text}`" if not {*"<>|`"} & {*text} else f"<code>{escape(text).replace('|', '&#124;')}</code>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; numbers with three decimals, whole ones as they are."""
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *shown])


def chunks_table(sentence: Sentence) -> str:
    """One row for each chunk: its tokens on both sides, its bytes, and what both models say of it."""
    alignment, (student_sums, teacher_sums) = sentence.alignment, sentence.chunk_logps()
    sides = (
        (sentence.student.labels(sentence.ids), alignment.student_chunks),
        (sentence.teacher.labels(alignment.teacher_ids), alignment.teacher_chunks),
    )
    rows = []
    for chunk in range(alignment.num_chunks):
        tokens = [" ".join(text for text, number in zip(*side, strict=True) if number == chunk) for side in sides]
        size = sum(n for n, c in zip(alignment.student_bytes, alignment.student_chunks, strict=True) if c == chunk)
        ours, theirs = student_sums[chunk].item(), teacher_sums[chunk].item()
        rows.append([chunk, *tokens, size, ours, theirs, theirs - ours])
    return table(
        ["chunk", "student tokens", "teacher tokens", "bytes", "`L_S`", "`L_T`", "`L_T \N{MINUS SIGN} L_S`"], rows
    )


def credit_table(sentence: Sentence) -> str:
    """One row for each student token: its log-prob, and its advantage under each rule."""
    columns = [sentence.advantages(rule).tolist() for rule in RULES]
    tokens = sentence.student.labels(sentence.ids)
    rows = zip(tokens, sentence.alignment.student_chunks, sentence.student_logps.tolist(), *columns, strict=True)
    return table(["token", "chunk", "`p_i`", *(f"`{rule}`" for rule in RULES)], list(rows))


def figures_table(sentence: Sentence) -> str:
    """What the run would log of this one completion."""
    student_sums, teacher_sums = sentence.chunk_logps()
    gaps, end = student_sums - teacher_sums, sentence.alignment.end_chunk
    text = [chunk for chunk in range(sentence.alignment.num_chunks) if chunk != end]
    size = sum(sentence.alignment.student_bytes)
    trained = sum(chunk >= 0 for chunk in sentence.alignment.student_chunks)
    loss = chunk_rkl(sentence.student_logps, sentence.advantages("proportional")).sum().item() / trained
    return table(
        ["figure", "value"],
        [
            ["`xtok/coverage`", sentence.alignment.coverage],
            [f"`xtok/reverse_kl_per_byte` (of {size} bytes)", gaps[text].sum().item() / size],
            ["`xtok/reverse_kl_end`", gaps[end].item()],
            [f"loss (`proportional`, {trained} tokens)", loss],
        ],
    )


def cut_table(sentence: Sentence, size: int) -> str:
    """The same completion where the length limit cuts it off after so many tokens: the last of them."""
    ids = sentence.ids[:size]
    alignment = TokenizerAligner(sentence.student.tokenizer, sentence.teacher.tokenizer).align(ids)
    rows = []
    for token, chunk, reason in zip(
        sentence.student.labels(ids), alignment.student_chunks, alignment.drop_reasons, strict=True
    ):
        unfinished = chunk == alignment.num_chunks - 1
        becomes = f"dropped: `{reason}`" if reason else "dropped: `unfinished`" if unfinished else "trained on"
        rows.append([token, chunk if chunk >= 0 else "none", becomes])
    return table(["token", "chunk", "what becomes of it"], rows[-4:])


def tables() -> dict[str, str]:
    """Every table of the page, by the name in its mark."""
    sentence = Sentence.carry(Side.load("smollm2-135m-instruct"), Side.load("gemma-3-270m"))
    parrot = next(
        i
        for i, n in enumerate(sentence.alignment.student_bytes)
        if sum(sentence.alignment.student_bytes[: i + 1]) > len(TEXT.encode()) - 4
    )
    return {
        "chunks": chunks_table(sentence),
        "credit": credit_table(sentence),
        "figures": figures_table(sentence),
        "cut": cut_table(sentence, parrot + 1),
    }


def renew(page: str, contents: dict[str, str]) -> str:
    """The page with the tables between its marks replaced."""
    for name, content in contents.items():
        place = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        page, found = re.subn(
            place, lambda match, text=content: f"{match[1]}\n{text}\n\n{match[2]}", page, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"The page has {found} places marked `<!-- table: {name} -->`, but there must be one.")
    return page


def main() -> None:
    """Print the tables, or renew them in a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="page whose tables are to be renewed")
    args = parser.parse_args()
    contents = tables()
    if args.page is None:
        print("\n\n".join(contents.values()))
    else:
        args.page.write_text(renew(args.page.read_text(encoding="utf-8"), contents), encoding="utf-8")


if __name__ == "__main__":
    main()
