"""Train every kind of student with every kind of teacher for two steps, each pair in a process of its own.

    python -m examples.combinations
    python -m examples.combinations --only "LoRA, 4-bit" --hidden-size 64 --layers 2

Two small random models, with tokenizers trained on the language reference of Python, are saved to a temporary folder.
Prints the loss of both steps and the most memory that was held: on CUDA as torch counts it, else what the process has
grown by.
"""

import argparse
import logging
import multiprocessing
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import ByteLevelBPETokenizer
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from examples.benchmarks.report import markdown_table
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


STUDENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "full": dict,
    "LoRA": lambda: {"peft_config": LoraConfig(target_modules="all-linear")},
    "QLoRA": lambda: {
        "peft_config": LoraConfig(target_modules="all-linear"),
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    },
}
TEACHERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "8-bit": {"teacher_quantization_config": {"load_in_8bit": True}},
    "4-bit": {"load_teacher_in_4bit": True},
}
PROMPTS = [
    "The language reference says",
    "An object",
    "If a class",
    "def add(a, b):",
    "Note that",
    "Hi",
    "import",
    "A",
]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of both models."""

    hidden_size: int
    layers: int


def save_models(folder: Path, sizes: Sizes) -> None:
    """Save a student and a teacher with tokenizers of different sizes."""
    for seed, (name, vocab_size) in enumerate({"student": 2000, "teacher": 4000}.items()):
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(
            topics.values(), vocab_size=vocab_size, special_tokens=["</s>"], show_progress=False
        )
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="</s>", pad_token="</s>")
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=sizes.hidden_size,
            intermediate_size=4 * sizes.hidden_size,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.hidden_size // 32,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def peak_memory() -> float:
    """Most memory that was held so far, in MB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def quiet() -> None:
    """Keep notices of other libraries off the screen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()


def train(folder: Path, pair: tuple[str, str]) -> tuple[list[float], float]:
    """Losses of two steps, and the memory they took."""
    student, teacher = pair
    before = peak_memory()
    args = CrossTokenizerGKDConfig(
        str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=8,
        max_new_tokens=16,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **TEACHERS[teacher],
    )
    trainer = CrossTokenizerGKDTrainer(
        str(folder / "student"),
        str(folder / "teacher"),
        args,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 2}),
        **STUDENTS[student](),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, peak_memory() - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pairs = {", ".join(pair): pair for pair in product(STUDENTS, TEACHERS)}
    parser.add_argument("--only", nargs="+", choices=pairs, default=list(pairs), metavar="PAIR")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    # A process that is forked, or that trains twice, would show the memory of others.
    processes = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1, "initializer": quiet}
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, **processes) as pool:
        pool.submit(save_models, Path(name), Sizes(args.hidden_size, args.layers)).result()
        chosen = [pairs[pair] for pair in args.only]
        rows = [
            [*pair, *(f"{loss:.4f}" for loss in losses), f"{memory:.0f}"]
            for pair, (losses, memory) in zip(chosen, pool.map(partial(train, Path(name)), chosen), strict=True)
        ]
    print(markdown_table(["student", "teacher", "loss, step 1", "loss, step 2", "memory (MB)"], rows))


if __name__ == "__main__":
    main()
