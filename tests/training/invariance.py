"""How far the division of an optimizer step changes it: one process with 4 x 1, 2 x 2 and 1 x 4, and two processes.

    python -m tests.training.invariance

Four fixed rollouts (one that the student's tokenizer would cut otherwise, one with charged tokens, an empty one), real
steps of the trainer, float32 on a CPU. Prints, for each objective, the largest difference from the step of one process
with a batch of four: of the loss, relative to it, and of any gradient, relative to the largest entry of its parameter.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks.report import markdown_table
from examples.combinations import quiet
from tests import real_tokenizers
from tests.training.fixed_rollouts import PADDING_ROWS, Step, lora
from tests.training.test_processes import run_two_ranks
from tests.training.tiny_models import save, tiny_model
from tests.training.two_ranks import only, take


OBJECTIVES: dict[str, dict[str, Any]] = {
    "chunk_rkl": {},
    "chunk_rkl, text": {"segmentation": "text", "credit": "chunk"},
    "chunk_jsd": {"objective": "chunk_jsd"},
    # The student without its adapter is the teacher.
    "exact_jsd": {"objective": "exact_jsd", "peft_config": lora},
    "shared_vocab_jsd": {"objective": "shared_vocab_jsd"},
    "hybrid": {"objective": "hybrid"},
    "prefix_jsd": {"objective": "prefix_jsd"},
}
# Batch size and accumulation steps; the first is what the others are compared with.
SPLITS = [(4, 1), (2, 2), (1, 4)]


def step(student: str, teacher: str, folder: str, objective: str, batch_size: int, accumulation: int) -> Step:
    """The optimizer step of an objective, divided so."""
    changes = OBJECTIVES[objective]
    if "peft_config" in changes:
        changes = changes | {"peft_config": changes["peft_config"]()}
    division = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    return take(student, teacher, folder, {"completions": only(0, 1, 3, 5), **changes, **division})


def differences(one: Step, other: Step) -> tuple[float, float]:
    """Of the loss, and of any gradient."""
    loss = abs(other.logged["loss"] - one.logged["loss"]) / abs(one.logged["loss"])
    gradients = (
        float((other.gradients[name] - gradient).abs().max() / gradient.abs().max())
        for name, gradient in one.gradients.items()
        if gradient.count_nonzero()
    )
    return loss, max(gradients)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        byte_level, unigram = real_tokenizers.smollm2(), real_tokenizers.unigram()
        student = save(tiny_model("llama", len(byte_level) + PADDING_ROWS), byte_level, Path(name, "student"))
        teacher = save(tiny_model("gemma3", len(unigram), seed=4), unigram, Path(name, "teacher"))
        run_two_ranks(student, teacher, name, module="tests.training.invariance")
        # The loss is logged by the main process, and the gradients are those of all.
        divided = torch.load(Path(name, "two_ranks.pt"), weights_only=False)
        rows = []
        for objective in OBJECTIVES:
            whole, *others = (step(student, teacher, name, objective, *split) for split in SPLITS)
            pairs = [differences(whole, other) for other in (*others, divided[objective])]
            rows.append([f"`{objective}`", *(f"{value:.1e}" for pair in pairs for value in pair)])
    header = [f"{split}: {of}" for split in ("2 x 2", "1 x 4", "2 processes x 2") for of in ("loss", "gradient")]
    print(markdown_table(["objective", *header], rows))


if __name__ == "__main__":
    quiet()
    if "RANK" in os.environ:
        *paths, folder = sys.argv[1:]
        taken = {objective: step(*paths, folder, objective, 2, 1) for objective in OBJECTIVES}
        if os.environ["RANK"] == "0":
            torch.save(taken, f"{folder}/two_ranks.pt")
    else:
        main()
