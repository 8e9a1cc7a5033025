"""What a teacher's precision does to its scores: bfloat16, 8-bit and 4-bit against float32, on prose and on code.

    python -m examples.teacher_precision
    python -m examples.teacher_precision --model smollm2-135m-instruct --texts 50

The texts come with Python: sentences of its language reference and functions of its standard library.
"""

import argparse
import ast
import inspect
import logging
import random
import re
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics
from typing import Any, get_args

import torch
from transformers import AutoTokenizer

from examples.benchmarks.report import markdown_table
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.cli.demo_models import DemoModel, demo_model_path
from trl_xtok.training.teachers import LocalTeacher, load_teacher


PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"teacher_model_init_kwargs": {"dtype": "bfloat16"}},
    "8-bit": {"teacher_quantization_config": {"load_in_8bit": True}},
    "8-bit, `llm_int8_threshold=0`": {
        "teacher_quantization_config": {"load_in_8bit": True, "llm_int8_threshold": 0.0}
    },
    "4-bit NF4": {"load_teacher_in_4bit": True},
}
MODULES = (argparse, ast, inspect, random, statistics, textwrap)
LENGTHS = range(60, 160)
BATCH = 16


def sentences() -> Iterator[str]:
    """Sentences of the language reference, without markup."""
    for topic in topics.values():
        for paragraph in topic.split("\n\n"):
            text = " ".join(paragraph.split())
            if not re.search(r"[*_`|~=<>\\]|::", text):
                yield from (sentence for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text) if sentence[-1:] == ".")


def functions() -> Iterator[str]:
    """The beginning of each function of a few modules."""
    for module in MODULES:
        source = inspect.getsource(module)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                yield textwrap.dedent(ast.get_source_segment(source, node, padded=True) or "")[: LENGTHS[-1]]


def sample(texts: Iterator[str], number: int) -> list[str]:
    """So many different texts of middling length."""
    fitting = sorted({text for text in texts if len(text.encode()) in LENGTHS})
    return random.Random(0).sample(fitting, number)


def scores(path: str, changes: dict[str, Any], texts: Sequence[str]) -> list[float]:
    """Log-prob of each text per byte, as a teacher of this precision says."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    args = CrossTokenizerGKDConfig("out", report_to="none", **changes)
    teacher = LocalTeacher(load_teacher(path, args), args)
    start = [tokenizer.bos_token_id]
    # Of similar length in a batch, so that little is computed on padding.
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    logps: dict[int, float] = {}
    for numbers in (order[place : place + BATCH] for place in range(0, len(order), BATCH)):
        completions = [tokenizer.encode(texts[number], add_special_tokens=False) for number in numbers]
        parts = teacher.token_logps([start] * len(numbers), completions).split([len(ids) for ids in completions])
        sums = [part.sum().item() for part in parts]
        logps |= {number: total / len(texts[number].encode()) for number, total in zip(numbers, sums, strict=True)}
    return [logps[number] for number in range(len(texts))]


def rows(path: str, number: int) -> Iterator[list[str]]:
    """A line of the table for each precision."""
    texts = [*sample(sentences(), number), *sample(functions(), number)]
    exact: list[float] = []
    for precision, changes in PRECISIONS.items():
        values = scores(path, changes, texts)
        exact = exact or values
        line = [precision]
        for kind in (slice(number), slice(number, None)):
            differences = [value - other for value, other in zip(values[kind], exact[kind], strict=True)]
            shift, error = statistics.fmean(differences), statistics.fmean(map(abs, differences))
            line += [f"{statistics.fmean(values[kind]):.3f}", f"{error:.4f}", f"{shift:+.4f}"]
        yield line


def main() -> None:
    """Print the table of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=get_args(DemoModel), default="gemma-3-270m")
    parser.add_argument("--texts", type=int, default=100, help="sentences, and as many functions")
    args = parser.parse_args()
    # bitsandbytes says on every forward that it casts to float16.
    logging.disable(logging.WARNING)
    header = ["teacher", *(f"{kind}: {name}" for kind in ("prose", "code") for name in ("log-prob", "error", "shift"))]
    with torch.inference_mode():
        print(markdown_table(header, list(rows(str(demo_model_path(args.model)), args.texts))))


if __name__ == "__main__":
    main()
