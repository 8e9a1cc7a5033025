"""One arm with one seed: train it, and note what it cost and what it could do on the way."""

import gc
import json
import logging
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback, TrainerCallback

from .arms import ARMS, BATCH, Setting, ours
from .prepare import accuracy, exam


# Operations are counted in one step of so many, since counting slows them down.
COUNTED_EVERY = 40
CHECKPOINTS = 3
# By the names under which our trainer logs them.
FIGURES = ("xtok/reverse_kl_per_byte", "xtok/coverage", "xtok/noncanonical_ratio", "xtok/stop_rate")
FIGURES += ("completions/mean_length",)


@dataclass(slots=True)
class Run:
    """What came out.

    Attributes:
        arm: Its name.
        seed: Its seed.
        learning_rate: At its peak.
        flops: Of matrix products since the start, at each checkpoint.
        accuracies: Share of samples for the exam's problems that are right, at each checkpoint.
        greedy: Share of the exam's problems that are solved greedily, at each checkpoint.
        figures: Of the trained student's samples for the exam, by the names that our trainer logs them under.
    """

    arm: str
    seed: int
    learning_rate: float
    flops: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    greedy: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def _added_product(total: torch.Size, left: torch.Size, right: torch.Size, **kwargs: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


# A product that is added in place, which torch does not count by itself.
COUNTED_TOO = {torch.ops.aten.addmm_: _added_product}


class Watch(TrainerCallback):
    """Counts operations and sets the exam while a run goes on."""

    def __init__(self, run: Run, trainer: Any, task: str, more_per_step: float):
        self.run, self._trainer, self._task, self._more = run, trainer, task, more_per_step
        self._counts: list[float] = []
        self._counting = ExitStack()
        self._counter: FlopCounterMode | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """The cold-started student."""
        self._examine(0)

    def on_step_end(self, args, state, control, **kwargs):
        """A step lasts from the end of one to the end of the next: rollouts come before it is said to begin."""
        self._counting.close()
        if self._counter is not None:
            self._counts.append(self._counter.get_total_flops())
            self._counter = None
        if state.global_step % max(state.max_steps // CHECKPOINTS, 1) == 0:
            self._examine(state.global_step)
        if state.global_step % COUNTED_EVERY == 1 and state.global_step < state.max_steps:
            self._counter = self._counting.enter_context(FlopCounterMode(display=False, custom_mapping=COUNTED_TOO))

    def _examine(self, step: int) -> None:
        per_step = sum(self._counts) / max(len(self._counts), 1) + self._more
        self.run.flops.append(step * per_step)
        trainer = self._trainer
        # The same random numbers at every checkpoint, and none of those that training draws.
        with torch.random.fork_rng():
            torch.manual_seed(self.run.seed)
            sampled, greedy = accuracy(trainer.model, trainer.processing_class, self._task)
        self.run.accuracies.append(sampled)
        self.run.greedy.append(greedy)


def run_arm(name: str, setting: Setting, path: Path) -> None:
    """Train an arm and write its `Run` to `path`, unless that is there already."""
    if path.exists():
        return
    _quiet()
    arm = ARMS[name]
    setting = replace(setting, steps=setting.steps * arm.longer)
    trainer = arm.build(setting)
    trainer.remove_callback(PrinterCallback)
    written = BATCH * json.loads((setting.folder / "flops_per_text.json").read_text()) if arm.reads else 0
    watch = Watch(Run(name, setting.seed, setting.learning_rate), trainer, setting.task, written)
    trainer.add_callback(watch)
    trainer.train()
    watch.run.figures = figures(trainer.model, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(watch.run)))
    print(f"{setting.task}, {name}, seed {setting.seed}: {watch.run.accuracies}", flush=True)
    del trainer, watch
    gc.collect()


def figures(student: Any, setting: Setting) -> dict[str, float]:
    """How a student samples, against the teacher with the other tokenizer."""
    judge = ours(replace(setting, steps=1))
    judge.remove_callback(PrinterCallback)
    judge.model.load_state_dict(student.state_dict())
    asked = Dataset.from_dict({"prompt": [problem.prompt for problem in exam(setting.task)]})
    measured = judge.evaluate(asked)
    return {name: measured[f"eval_{name}"] for name in FIGURES}


def _quiet() -> None:
    """Warnings of TRL's experimental code and progress bars of many short runs say nothing here."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
