"""Draw the chunks of a text as an SVG: student tokens above, teacher tokens below, one colour per chunk.

    python examples/chunk_diagram.py --output docs/chunks.svg
    python examples/chunk_diagram.py --student PATH --teacher PATH --text "..." --output chunks.svg

Without paths, the tokenizers are those of the demo's models (`trl-xtok demo`).
"""

import argparse
from html import escape
from pathlib import Path

from transformers import AutoTokenizer

from trl_xtok import Alignment, TokenizerAligner
from trl_xtok.alignment.token_bytes import token_bytes
from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.report.page import visible_token


TEXT = "Crème brûlée costs 1234 yen 🦜"
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2")
CHARACTER, PADDING, HEIGHT, TOP, MARGIN = 8.5, 14, 34, 30, 12
STYLE = (
    "text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#fff;text-anchor:middle}"
    ".label{font-family:system-ui,sans-serif;font-size:13px;fill:#444;text-anchor:start}"
    "@media (prefers-color-scheme:dark){.label{fill:#ccc}}"
)


def columns(alignment: Alignment, student: list[str], teacher: list[str]) -> list[tuple[list[str], list[str]]]:
    """The labels of each chunk's student tokens and teacher tokens."""
    return [
        (
            [text for text, number in zip(student, alignment.student_chunks, strict=True) if number == chunk],
            [text for text, number in zip(teacher, alignment.teacher_chunks, strict=True) if number == chunk],
        )
        for chunk in range(alignment.num_chunks)
    ]


def draw(chunks: list[tuple[list[str], list[str]]]) -> str:
    """The SVG."""
    x, shapes = float(MARGIN), []
    for number, (student, teacher) in enumerate(chunks):
        width = max(sum(len(text) * CHARACTER + PADDING for text in side) for side in (student, teacher))
        colour = COLOURS[number % len(COLOURS)]
        shapes.append(
            f'<rect x="{x:.1f}" y="{TOP + HEIGHT}" width="{width:.1f}" height="16" fill="{colour}" opacity="0.35"/>'
        )
        for side, y in ((student, TOP), (teacher, TOP + HEIGHT + 16)):
            total = sum(len(text) * CHARACTER + PADDING for text in side)
            left = x
            for text in side:
                box = (len(text) * CHARACTER + PADDING) * width / total
                place = f'x="{left + 1:.1f}" y="{y}" width="{box - 2:.1f}" height="{HEIGHT}"'
                shapes.append(f'<rect {place} rx="4" fill="{colour}"/>')
                shapes.append(f'<text x="{left + box / 2:.1f}" y="{y + 22}">{escape(text)}</text>')
                left += box
        x += width + 4
    bottom = TOP + 2 * HEIGHT + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x + MARGIN:.0f} {bottom + 26}" role="img">'
        f"<title>A text in the tokens of two models, cut into chunks</title><style>{STYLE}</style>"
        f'<text class="label" x="{MARGIN}" y="20">student tokens</text>{"".join(shapes)}'
        f'<text class="label" x="{MARGIN}" y="{bottom + 18}">teacher tokens; one colour is one chunk, the last one '
        "the end of the turn</text></svg>\n"
    )


def main() -> None:
    """Align the text and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", help="folder or name of the student's tokenizer")
    parser.add_argument("--teacher", help="folder or name of the teacher's tokenizer")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    student = AutoTokenizer.from_pretrained(args.student or demo_model_path("smollm2-135m-instruct"))
    teacher = AutoTokenizer.from_pretrained(args.teacher or demo_model_path("gemma-3-270m"))
    aligner = TokenizerAligner(student, teacher)
    student_ids = [*student(args.text, add_special_tokens=False)["input_ids"], student.eos_token_id]
    alignment = aligner.align(student_ids)
    names = [
        [visible_token(token_bytes(tokenizer).spell(token) or b"") for token in ids[:-1]]
        + [tokenizer.convert_ids_to_tokens(ids[-1])]
        for tokenizer, ids in ((student, student_ids), (teacher, alignment.teacher_ids))
    ]
    args.output.write_text(draw(columns(alignment, *names)), encoding="utf-8")


if __name__ == "__main__":
    main()
