"""Kill a training run at random times, go on from what it left, and compare the end with a run that was left alone.

    python -m tests.training.kill_and_resume --kills 40

Every life of a run is a process of its own. It is killed with SIGKILL, at a random time after its first step began or,
every other time, while it saves a checkpoint.
"""

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests import real_tokenizers
from tests.training.fixed_rollouts import without_times
from tests.training.tiny_models import save, tiny_args, tiny_model, tiny_trainer
from trl_xtok.errors import CheckpointError
from trl_xtok.training.checkpoints import what_lacks


KINDS: dict[str, dict[str, Any]] = {
    "full": {"max_steps": 6, "save_steps": 1, "save_total_limit": 2},
    "LoRA": {"max_steps": 10, "save_steps": 2, "objective": "prefix_jsd", "lmbda": 0.5, "seq_kd": True},
}
# A server that has imported everything forks in a fraction of a second.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["bitsandbytes", "tests.training.fixed_rollouts"])


class Begin(TrainerCallback):
    """Leaves a file when training begins."""

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        self.file.touch()


def train(folder: str, student: str, teacher: str, kind: str) -> None:
    """One life of a run: from the last complete checkpoint, or from the beginning, to its end."""
    with open(f"{folder}.log", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.manual_seed(3)
    trainer = tiny_trainer(
        student,
        teacher,
        tiny_args(folder, save_strategy="steps", max_new_tokens=4, **KINDS[kind]),
        peft_config=LoraConfig(r=2, lora_dropout=0.1) if kind == "LoRA" else None,
        callbacks=[Begin(Path(f"{folder}.begun"))],
    )
    try:
        trainer.train(resume_from_checkpoint=True)
    except CheckpointError:
        trainer.train()


def unfinished(folder: Path) -> dict[Path, int]:
    """The checkpoints that are not complete, and when they were last written to."""
    return {
        path: max((file.stat().st_mtime_ns for file in [path, *path.iterdir()]), default=0)
        for path in folder.glob("checkpoint-*")
        if what_lacks(str(path))
    }


def live(folder: Path, models: tuple[str, str], kind: str, *, die: str | None = None, after: float = 0) -> str | None:
    """Let a run live until it ends (`None`) or is killed; returns what it was killed at.

    Args:
        folder: Where it saves.
        models: Student and teacher.
        kind: Of which kind it is.
        die: Whether it is killed at `"any time"` or `"saving"`, or not at all.
        after: So many seconds after it has begun to train or to save.
    """
    begun = Path(f"{folder}.begun")
    begun.unlink(missing_ok=True)
    process = PROCESSES.Process(target=train, args=(str(folder), *models, kind))
    before = unfinished(folder)
    process.start()
    while process.is_alive() and not begun.exists():
        time.sleep(0.01)
    if die == "saving":
        while process.is_alive() and not unfinished(folder).items() - before.items():
            time.sleep(0.001)
    time.sleep(after)
    ended = die is None or not process.is_alive()
    if not ended:
        process.kill()
    process.join()
    if ended:
        assert process.exitcode == 0, Path(f"{folder}.log").read_text()[-3000:]
        return None
    return "saving" if unfinished(folder).items() - before.items() else "training"


def outcome(folder: Path, kind: str) -> dict[str, Any]:
    """All that the last checkpoint holds, but for times and for tokens counted since the process began."""
    last = folder / f"checkpoint-{KINDS[kind]['max_steps']}"
    (weights,) = last.glob("*model.safetensors")
    logs = json.loads((last / "trainer_state.json").read_text())["log_history"]
    logs = [without_times(entry) for entry in logs]
    return {
        "weights": load_file(weights),
        "optimizer": torch.load(last / "optimizer.pt", weights_only=True),
        "scheduler": torch.load(last / "scheduler.pt", weights_only=True),
        "log history": [{k: v for k, v in entry.items() if "num_tokens" not in k} for entry in logs],
    }


def assert_identical(one: Any, other: Any, name: str) -> None:
    """Bit for bit."""
    assert type(one) is type(other), name
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), name
        for key in one:
            assert_identical(one[key], other[key], f"{name} / {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), name
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_identical(a, b, f"{name} / {number}")
    else:
        assert one == other, f"{name}: {one!r} and {other!r}"


def kill_and_resume(folder: Path, models: tuple[str, str], kind: str, *, kills: int, seed: int = 0) -> Counter[str]:
    """Kill runs of one kind this many times in all; returns how many kills hit what, and how many runs there were."""
    chance, hits = random.Random(seed), Counter[str]()
    folder.mkdir(exist_ok=True)
    assert live(folder / "straight", models, kind) is None
    expected = outcome(folder / "straight", kind)
    # Kills come at times that suit the speed of the machine.
    duration = time.time() - Path(f"{folder / 'straight'}.begun").stat().st_mtime
    longest = {None: 0, "any time": duration / 2, "saving": duration / KINDS[kind]["max_steps"] / 2}
    while (done := hits["training"] + hits["saving"]) < kills or not hits["runs"]:
        run = folder / f"run-{hits['runs']}"
        for number in range(done, kills + 1):
            die = None if number == kills else ("any time", "saving")[number % 2]
            hit = live(run, models, kind, die=die, after=chance.uniform(0, longest[die]))
            if hit is None:
                break
            hits[hit] += 1
        assert_identical(outcome(run, kind), expected, kind)
        hits["runs"] += 1
    return hits


def make_models(folder: Path) -> tuple[str, str]:
    """A student and a teacher on disk."""
    student, teacher = real_tokenizers.smollm2(), real_tokenizers.mistral1()
    return (
        save(tiny_model("llama", len(student)), student, folder / "student"),
        save(tiny_model("gemma3", len(teacher), seed=1), teacher, folder / "teacher"),
    )


def main() -> None:
    """Report how many kills the runs survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="Number of kills for each kind of run.")
    parser.add_argument("--seed", type=int, default=0, help="For the times of the kills.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = make_models(Path(folder))
        for kind in KINDS:
            hits = kill_and_resume(Path(folder) / kind, models, kind, kills=args.kills, seed=args.seed)
            print(f"{kind}: {hits['training'] + hits['saving']} kills survived, {hits['saving']} of them while a "
                  f"checkpoint was written, in {hits['runs']} runs that all ended as one without kills.")  # fmt: skip


if __name__ == "__main__":
    main()
