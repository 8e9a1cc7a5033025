"""Does it learn? Ways to distil a teacher into a student with another tokenizer, on two small tasks.

    python -m examples.benchmarks.learning
    python -m examples.benchmarks.learning --task digits --seeds 0 --steps 10 --only "chunk_rkl, additive"

Teachers are trained from scratch on the task, students are cold-started on a few of the teacher's texts; then each arm
goes on from there, with the same prompts, for as many steps (SFT longer), in float32. Models, texts and results are
kept in `--output`, and what is there already is not done again. Needs the repository's tests for their tokenizers.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import torch

from ..arguments import at_least_one, at_least_zero, positive
from .arms import ARMS, BATCH, TEACHER_NAME, Setting
from .prepare import Amounts, prepare
from .report import draw, tables
from .runs import Run, run_arm
from .tasks import TASKS


def read_arguments() -> argparse.Namespace:
    """What is compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=at_least_zero, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=at_least_one, default=120, help="of every arm but SFT, which takes more")
    parser.add_argument("--learning-rate", type=positive, nargs="+", help="instead of each arm's own; all are tried")
    parser.add_argument("--only", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME")
    parser.add_argument("--teacher-steps", type=at_least_one, default=2000)
    parser.add_argument(
        "--student-texts", type=at_least_one, default=4000, help="that a student has read before the arms"
    )
    parser.add_argument("--jobs", type=at_least_one, default=os.cpu_count(), help="runs at a time, on one core each")
    parser.add_argument("--output", type=Path, default=Path("out/learning"))
    parser.add_argument("--charts", type=Path, default=Path("docs"), help="folder for benchmark_learning_*.svg")
    return parser.parse_args()


def main() -> None:
    """Prepare the models, run what is missing, print the tables, draw the charts."""
    arguments = read_arguments()
    written = BATCH * arguments.steps * max(arm.longer for arm in ARMS.values())
    amounts = Amounts(arguments.teacher_steps, arguments.student_texts, written)
    paths: dict[str, list[Path]] = {task: [] for task in arguments.task}
    spawn, one_thread = multiprocessing.get_context("spawn"), {"initializer": torch.set_num_threads, "initargs": (1,)}
    with ProcessPoolExecutor(arguments.jobs, spawn, **one_thread) as pool:
        waiting = []
        for task in arguments.task:
            teachers = {TEACHER_NAME, *(ARMS[name].teacher for name in arguments.only)}
            prepare(arguments.output / task, task, arguments.seeds, amounts, teachers, pool)
            for seed, name in product(arguments.seeds, arguments.only):
                for rate in arguments.learning_rate or [ARMS[name].learning_rate]:
                    setting = Setting(arguments.output / task, task, seed, arguments.steps, rate)
                    path = arguments.output / task / "runs" / f"{name}, {rate:g}, {seed}.json"
                    paths[task].append(path)
                    waiting.append(pool.submit(run_arm, name, setting, path))
        for future in waiting:
            future.result()
    for task, written_runs in paths.items():
        runs = [Run(**json.loads(path.read_text())) for path in written_runs]
        print(f"\n## {task}\n\n{tables(runs)}")
        draw(runs, task, arguments.charts / f"benchmark_learning_{task}.svg")


if __name__ == "__main__":
    main()
