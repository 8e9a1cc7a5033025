"""`trl-xtok demo`: a short distillation between two real models of different families, and what it changed.

The student is SmolLM2-135M-Instruct (ByteLevel BPE, 49,152 entries) with LoRA, the teacher Gemma 3 270M (SentencePiece
BPE, 262,144 entries) in 4-bit. Everything goes through the public API.
"""

import json
import logging
import resource
import sys
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import ProgressCallback

from .. import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from .demo_models import demo_model_path


_SAMPLES = ("en", "es", "python")
_ROLLOUTS_PER_PROMPT = 6
_FIGURES = (
    ("reverse KL per byte (nats)", "xtok/reverse_kl_per_byte", ".3f"),
    ("next-token divergence (nats)", "xtok/vocab_jsd", ".3f"),
    ("coverage", "xtok/coverage", ".3f"),
    ("non-canonical rollouts", "xtok/noncanonical_ratio", ".3f"),
    ("stop rate", "xtok/stop_rate", ".3f"),
    ("mean length (tokens)", "completions/mean_length", ".1f"),
)


def recipe(output_dir: str, seed: int = 0, **overrides: Any) -> CrossTokenizerGKDConfig:
    """The demo's training arguments; `docs/results.md` says how they were found."""
    settings: dict[str, Any] = {
        "max_steps": 24,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 72,
        "generation_batch_size": 72,
        "max_new_tokens": 32,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "adam_beta2": 0.99,
        "objective": "prefix_jsd",
        "beta": 1.0,
        "credit": "additive",
        # One chunk that the teacher finds absurd would outweigh the rest of so small a batch.
        "advantage_clip": 3.0,
        "advantage_baseline": "mean",
        # Larger blocks: a head of 262,144 rows is read less often, and there is memory for it.
        "block_size": 128,
        "load_teacher_in_4bit": True,
        # Both models are small: recomputing activations would only cost time.
        "gradient_checkpointing": False,
        "logging_steps": 5,
        "save_strategy": "no",
        # For the page of `trl-xtok report`.
        "log_completions": True,
        "num_completions_to_print": 0,
        "report_to": "none",
    }
    return CrossTokenizerGKDConfig(output_dir=output_dir, seed=seed, **{**settings, **overrides})


def run_demo(output_dir: str, *, seed: int, max_steps: int | None) -> int:
    """Train, print what changed, and leave the adapter and `demo.json` in `output_dir`."""
    _quiet()
    console = Console()
    prompts = _prompts()
    trainer = CrossTokenizerGKDTrainer(
        model=str(demo_model_path("smollm2-135m-instruct")),
        teacher_model=str(demo_model_path("gemma-3-270m")),
        args=recipe(output_dir, seed, **({} if max_steps is None else {"max_steps": max_steps})),
        train_dataset=Dataset.from_list(prompts["train"]),
        # A rollout says little about a distribution, so each prompt is evaluated on several.
        eval_dataset=Dataset.from_list(prompts["held_out"] * _ROLLOUTS_PER_PROMPT),
        peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
    )
    trainer.pop_callback(ProgressCallback)
    trainer.add_callback(_Progress())
    first_of = {row["language"]: row["prompt"] for row in reversed(prompts["held_out"])}
    samples = [first_of[language] for language in _SAMPLES]
    console.print("[bold]Before training[/bold]: sampling completions for the held-out prompts")
    before, written_before = trainer.evaluate(), _write(trainer, samples, seed)
    console.print(f"[bold]Training[/bold]: {trainer.args.max_steps} steps of {trainer.args.train_batch_size} rollouts")
    trainer.train()
    console.print("[bold]After training[/bold]: the same prompts and random numbers")
    after, written_after = trainer.evaluate(), _write(trainer, samples, seed)
    trainer.save_model()
    speed = tokens_per_second(trainer)
    memory = peak_memory_gb()
    _print_samples(console, samples, written_before, written_after)
    _print_figures(console, before, after)
    console.print("Tokens per second: " + ", ".join(f"{phase} {rate:.0f}" for phase, rate in speed.items()))
    console.print(f"Peak memory: {memory:.1f} GB")
    result = {"seed": seed, "before": before, "after": after, "tokens_per_second": speed, "peak_memory_gb": memory}
    path = Path(output_dir) / "demo.json"
    path.write_text(json.dumps({**result, "log": trainer.state.log_history}, indent=1))
    console.print(f"Adapter and figures: {path.parent}")
    console.print(f"Curves, completions and credit by token: trl-xtok report {path.parent}", markup=False)
    return 0


class _Progress(ProgressCallback):
    """The usual progress bar, with two figures at its end instead of a dictionary after every few steps."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Show the last logged reverse KL and coverage."""
        if self.training_bar is not None and logs is not None and "xtok/coverage" in logs:
            shown = {name: f"{logs[f'xtok/{name}']:.3f}" for name in ("reverse_kl_per_byte", "coverage")}
            self.training_bar.set_postfix(shown)


def _quiet() -> None:
    """Keep notices of other libraries, which a user of the demo can do nothing about, off the screen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _prompts() -> dict[str, list[dict[str, str]]]:
    lines = files("trl_xtok.cli").joinpath("demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {split: [row for row in rows if row["split"] == split] for split in ("train", "held_out")}


@torch.no_grad()
def _write(trainer: CrossTokenizerGKDTrainer, prompts: Sequence[str], seed: int) -> list[str]:
    """What the student writes after each prompt, with the same random numbers at every call."""
    tokenizer, completions = trainer.processing_class, []
    trainer.model.eval()
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(trainer.args.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = trainer.model.generate(**inputs, generation_config=trainer.generation_config)
        completions.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return completions


def tokens_per_second(trainer: CrossTokenizerGKDTrainer) -> dict[str, float]:
    """Sampled tokens divided by the seconds of each phase, over the whole run."""
    logs = [log for log in trainer.state.log_history if "time/rollout" in log]
    tokens = sum(log["completions/mean_length"] for log in logs) * trainer.args.train_batch_size
    names = ("rollout", "align", "teacher", "student")
    return {name: tokens / max(sum(log[f"time/{name}"] for log in logs), 1e-9) for name in names}


def peak_memory_gb() -> float:
    """Most memory that this process has held, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def _print_samples(console: Console, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> None:
    table = Table("prompt", "before", "after", title="What the student writes", show_lines=True)
    for row in zip(prompts, before, after, strict=True):
        # A model's text is data: brackets in it are not markup.
        table.add_row(*map(Text, row))
    console.print(table)


def _print_figures(console: Console, before: dict[str, float], after: dict[str, float]) -> None:
    table = Table("held-out prompts", "before", "after", "change", title="Teacher and student")
    for label, name, form in _FIGURES:
        old, new = before[f"eval_{name}"], after[f"eval_{name}"]
        change = f"{new / old - 1:+.0%}" if name == "xtok/reverse_kl_per_byte" else f"{new - old:+{form}}"
        table.add_row(label, f"{old:{form}}", f"{new:{form}}", change)
    console.print(table)
