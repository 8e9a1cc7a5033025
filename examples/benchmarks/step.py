"""Whole step: seconds of one optimizer step (rollout, teacher, student, update), side by side with TRL's trainers.

    python -m examples.benchmarks.step
    python -m examples.benchmarks.step --tokens 8 16 --batch-size 4 2 --steps 1

Student and teachers are two-layer models with random weights, in float32, with real tokenizers and vocabulary sizes: a
Llama with Llama 3's tokenizer, a Qwen 2 with Qwen 3's, and for the trainers that need one vocabulary a wider Llama
with the student's. Every weight of the student is trained. All trainers get the same prompt in every row, sample
completions of the same length at temperature 1 with a KV cache, and checkpoint no activations. A random student writes
random tokens, so its texts are harder to align than real ones. A step lasts from the end of one optimizer step to the
end of the next; the first is not counted, and of the others the shortest counts. All lengths are measured with the
first batch size and all batch sizes with the first length. Needs the repository's tests for tokenizers and models; the
chart is left out if matplotlib is not installed.
"""

import argparse
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback
from transformers.utils import logging

from tests import real_tokenizers
from tests.training.tiny_models import save, tiny_model
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer

from .arguments import at_least_one
from .report import machine_line, markdown_table, number


PROMPT = "Explain in a few sentences why the sky is blue at noon and red in the evening."
# GOLD reads a conversation to its end, though it replaces the answer by a sample.
CONVERSATION = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "Light is scattered."}]
PHASES = ("rollout", "align", "teacher", "student")
HEADER = ("trainer", "completions", "tokens of each", "seconds per step", *PHASES, "everything else", "coverage")


@dataclass(frozen=True, slots=True)
class Models:
    """Folders with a model and its tokenizer each."""

    student: str
    other_tokenizer: str
    same_tokenizer: str


Objective = Literal["chunk_rkl", "prefix_jsd", "exact_jsd"]
Build = Callable[[Models, int, dict[str, Any]], Trainer]


class StepClock(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        """Wait for the device, which may still be at work."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def make_models(folder: Path) -> Models:
    """Write the models; the teachers are wider than the student."""
    llama3, qwen3 = real_tokenizers.llama3(), real_tokenizers.qwen3()
    shape = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    student = {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64, **shape}
    teacher = {"hidden_size": 512, "intermediate_size": 2048, "head_dim": 128, **shape}
    return Models(
        student=save(tiny_model("llama", len(llama3), **student), llama3, folder / "student"),
        # Qwen pads its embedding.
        other_tokenizer=save(tiny_model("qwen2", 151_936, seed=1, **teacher), qwen3, folder / "other_tokenizer"),
        same_tokenizer=save(tiny_model("llama", len(llama3), seed=2, **teacher), llama3, folder / "same_tokenizer"),
    )


def given(models: Models, settings: dict[str, Any]) -> dict[str, Any]:
    """What every trainer is given: the student, its tokenizer with a pad token, and rows that are all the same."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(models.student)
    tokenizer.pad_token = tokenizer.eos_token
    rows = settings["max_steps"] * settings["per_device_train_batch_size"]
    dataset = Dataset.from_dict({"messages": [CONVERSATION] * rows})
    return {"model": models.student, "processing_class": tokenizer, "train_dataset": dataset}


def ours(models: Models, tokens: int, settings: dict[str, Any], *, objective: Objective) -> Trainer:
    """Our trainer, with a teacher whose tokenizer the objective can take."""
    teacher = models.same_tokenizer if objective == "exact_jsd" else models.other_tokenizer
    # Random texts may lie below any sensible coverage.
    config = CrossTokenizerGKDConfig(**settings, objective=objective, max_new_tokens=tokens, min_coverage=0.0)
    teacher_tokenizer = PreTrainedTokenizerFast.from_pretrained(teacher)
    return CrossTokenizerGKDTrainer(
        teacher_model=teacher, args=config, teacher_processing_class=teacher_tokenizer, **given(models, settings)
    )


def gold(models: Models, tokens: int, settings: dict[str, Any], *, hybrid: bool) -> Trainer:
    """TRL's trainer for two tokenizers."""
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    options = {"use_uld_loss": True, "uld_use_hybrid_loss": hybrid, "top_p": 1.0}
    config = GOLDConfig(**settings, **options, max_completion_length=tokens)
    return GOLDTrainer(teacher_model=models.other_tokenizer, args=config, **given(models, settings))


def gkd(models: Models, tokens: int, settings: dict[str, Any]) -> Trainer:
    """TRL's trainer for one tokenizer."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    config = GKDConfig(**settings, max_new_tokens=tokens)
    return GKDTrainer(teacher_model=models.same_tokenizer, args=config, **given(models, settings))


TRAINERS: dict[str, Build] = {
    "chunk_rkl": partial(ours, objective="chunk_rkl"),
    "prefix_jsd": partial(ours, objective="prefix_jsd"),
    "TRL GOLD": partial(gold, hybrid=False),
    "TRL GOLD, hybrid": partial(gold, hybrid=True),
    "exact_jsd, one tokenizer": partial(ours, objective="exact_jsd"),
    "TRL GKD, one tokenizer": gkd,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a step took: the shortest one of a trainer with so many completions of so many tokens each.

    Attributes:
        seconds: Of the step.
        shares: Of the phases and of everything else in it, and the coverage; empty if the trainer does not say.
    """

    trainer: str
    completions: int
    tokens: int
    seconds: float
    shares: list[str]

    def row(self) -> list[str]:
        """A row of the table."""
        shares = self.shares or ["-"] * (len(PHASES) + 2)
        return [self.trainer, str(self.completions), str(self.tokens), number(self.seconds), *shares]


def measure(name: str, models: Models, tokens: int, settings: dict[str, Any]) -> Result:
    """Train for a few steps."""
    trainer: Any = TRAINERS[name](models, tokens, settings)
    # Each trainer samples with this configuration. No completion may end before the others.
    trainer.generation_config.min_new_tokens = tokens
    trainer.remove_callback(PrinterCallback)
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    del trainer
    gc.collect()
    lengths = [end - start for start, end in pairwise(clock.ends)]
    seconds, batch_size = min(lengths), settings["per_device_train_batch_size"]
    print(f"{name}, {batch_size} x {tokens}: {number(seconds)} s per step", file=sys.stderr, flush=True)
    # The first step has a log, and no end of another step before it.
    log = logs[1 + lengths.index(seconds)]
    if "time/rollout" not in log:
        return Result(name, batch_size, tokens, seconds, [])
    phases = [log[f"time/{phase}"] for phase in PHASES]
    shares = [f"{share / seconds:.0%}" for share in (*phases, seconds - sum(phases))]
    return Result(name, batch_size, tokens, seconds, [*shares, f"{log['xtok/coverage']:.2f}"])


def draw(results: Sequence[Result], path: Path) -> None:
    """Seconds against the length of the completions and against their number, a line for each trainer."""
    from matplotlib import pyplot

    first = results[0]
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(10, 4))
    ends: list[list[tuple[float, float, str, str]]] = [[], []]
    for name in dict.fromkeys(result.trainer for result in results):
        colour = "#f58518" if name.startswith("TRL") else "#4c78a8"
        style = {"color": colour, "marker": "o", "linestyle": "--" if name.endswith("one tokenizer") else "-"}
        own = [result for result in results if result.trainer == name]
        by_length = sorted((r.tokens, r.seconds) for r in own if r.completions == first.completions)
        by_number = sorted((r.completions, r.seconds) for r in own if r.tokens == first.tokens)
        for panel, points, labels in zip(panels, (by_length, by_number), ends, strict=True):
            panel.plot(*zip(*points, strict=True), label=name, **style)
            labels.append((points[-1][1], points[-1][0], name, colour))
    gap = max(result.seconds for result in results) / 25
    for panel, labels in zip(panels, ends, strict=True):
        height = 0.0
        for seconds, place, name, colour in sorted(labels):
            height = max(seconds, height + gap)
            panel.text(place, height, f"   {name}", fontsize=7, color=colour, va="center")
    panels[0].set_xlabel(f"tokens of each of {first.completions} completions")
    panels[1].set_xlabel(f"completions of {first.tokens} tokens")
    panels[0].set_ylabel("seconds per optimizer step")
    for panel in panels:
        panel.set_xlim(0)
        panel.set_ylim(0)
        panel.margins(x=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def read_arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokens", type=at_least_one, nargs="+", default=[64, 32, 128], help="length of every completion"
    )
    parser.add_argument("--batch-size", type=at_least_one, nargs="+", default=[8, 4, 2])
    parser.add_argument("--steps", type=at_least_one, default=3, help="the shortest counts; one more is taken before")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for benchmark_step.svg")
    parser.add_argument("--only", nargs="+", choices=list(TRAINERS), default=list(TRAINERS), metavar="NAME")
    return parser.parse_args()


def main() -> None:
    """Measure one trainer after the other and print the table."""
    arguments = read_arguments()
    # TRL's code of this kind may change, says its warning; the version that is measured stands above the table.
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        settings = {
            "output_dir": f"{folder}/out",
            "use_cpu": not torch.cuda.is_available(),
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": arguments.steps + 1,
            "max_length": max(arguments.tokens) + 512,
            "activation_checkpointing": False,
            "lmbda": 1.0,
            "temperature": 1.0,
        }
        sizes = dict.fromkeys(
            [(arguments.batch_size[0], tokens) for tokens in arguments.tokens]
            + [(batch_size, arguments.tokens[0]) for batch_size in arguments.batch_size]
        )
        results = [
            measure(name, models, tokens, settings | {"per_device_train_batch_size": batch_size})
            for batch_size, tokens in sizes
            for name in arguments.only
        ]
    print(f"{machine_line('cuda' if torch.cuda.is_available() else 'cpu')}. float32.\n")
    print(markdown_table(HEADER, [result.row() for result in results]))
    if find_spec("matplotlib") is not None:
        draw(results, arguments.output / "benchmark_step.svg")


if __name__ == "__main__":
    main()
