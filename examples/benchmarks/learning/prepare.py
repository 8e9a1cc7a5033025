"""Before the arms: the teachers, what the teacher writes, and a cold-started student for each seed."""

import json
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .arms import BATCH, MAX_NEW_TOKENS, SAME_TOKENIZER, TEACHER_NAME, Setting, fine_tune
from .models import STUDENT, TEACHER, load, new_model, save, tokenizers
from .tasks import Problem, problems


# Enough that a third of what the student samples is right: one that can do little learns little from its own samples.
COLD_START_STEPS = {"digits": 800, "words": 380}
# Samples for each problem of the exam.
SAMPLES = 2


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is spent before the arms.

    Attributes:
        teacher_steps: Of a teacher's training from scratch.
        student_texts: Different texts of the teacher that a cold start reads.
        written: Texts that the teacher writes for the arm that reads them.
    """

    teacher_steps: int
    student_texts: int
    written: int


def prepare(
    folder: Path, task: str, seeds: Sequence[int], amounts: Amounts, teachers: Collection[str], pool: Executor
) -> None:
    """Make what is not there yet, of the teachers no others than `teachers`; models are trained in the pool."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {TEACHER_NAME: "teacher", SAME_TOKENIZER: "student"}
    missing = [name for name in sides if name in teachers and not (folder / name).exists()]
    for trained in [
        pool.submit(_train_teacher, folder, name, sides[name], task, amounts.teacher_steps) for name in missing
    ]:
        trained.result()
    if not (folder / "written.jsonl").exists():
        _write(folder, task, amounts)
    missing_seeds = [seed for seed in seeds if not (folder / f"student-{seed}").exists()]
    for trained in [pool.submit(_cold_start, folder, task, seed) for seed in missing_seeds]:
        trained.result()


def _train_teacher(folder: Path, name: str, side: str, task: str, steps: int) -> None:
    tokenizer = tokenizers(task)[side]
    save(new_model(tokenizer, TEACHER, seed=7), tokenizer, folder / f"{name}-untrained")
    source = islice(problems(task, name, held_out=False), BATCH * steps)
    rows = Dataset.from_list([{"prompt": p.prompt, "completion": p.solution} for p in source])
    setting = Setting(folder, task, 7, steps, 3e-3)
    trainer = fine_tune(folder / f"{name}-untrained", rows, setting.arguments())
    trainer.train()
    save(trainer.model, tokenizer, folder / name)
    print(f"{task}, {name}: accuracy {accuracy(trainer.model, tokenizer, task)}", flush=True)


def _write(folder: Path, task: str, amounts: Amounts) -> None:
    """Texts of the teacher, sampled as a student samples; the first ones are for the cold start."""
    model, tokenizer = load(folder / TEACHER_NAME)
    source, wanted = problems(task, "written", held_out=False), amounts.student_texts + amounts.written
    rows, flops_per_text = [], 0.0
    # Some texts do not end.
    for start in range(0, 2 * wanted, 512):
        if len(rows) >= wanted:
            break
        prompts = [problem.prompt for problem in islice(source, 512)]
        # Counting slows it down, and one batch is like the other.
        with FlopCounterMode(display=False) if start == 0 else nullcontext() as counter:
            texts = write(model, tokenizer, prompts, task, do_sample=True, top_k=0)
        flops_per_text = counter.get_total_flops() / len(prompts) if counter else flops_per_text
        rows += [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True) if text]
    if len(rows) < wanted:
        raise SystemExit(
            f"Only {len(rows)} texts of the teacher ended. It needs more than {amounts.teacher_steps} steps."
        )
    cold, fresh = rows[: amounts.student_texts], rows[amounts.student_texts : wanted]
    (folder / "flops_per_text.json").write_text(json.dumps(flops_per_text))
    _dump(cold, folder / "cold_start.jsonl")
    _dump(fresh, folder / "written.jsonl")


def _cold_start(folder: Path, task: str, seed: int) -> None:
    tokenizer = tokenizers(task)["student"]
    save(new_model(tokenizer, STUDENT, seed), tokenizer, folder / f"untrained-{seed}")
    rows = Dataset.from_json(str(folder / "cold_start.jsonl"), cache_dir=str(folder / "cache"))
    setting = Setting(folder, task, seed, COLD_START_STEPS[task], 3e-3)
    trainer = fine_tune(folder / f"untrained-{seed}", rows, setting.arguments())
    trainer.train()
    save(trainer.model, tokenizer, folder / f"student-{seed}")
    print(f"{task}, student {seed}: accuracy {accuracy(trainer.model, tokenizer, task)}", flush=True)


def _dump(rows: Sequence[dict[str, str]], path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def exam(task: str) -> list[Problem]:
    """The held-out problems on which accuracy is measured."""
    return list(islice(problems(task, "exam", held_out=True), 400))


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: str) -> tuple[float, float]:
    """Share of the exam's problems that a model solves, sampling at temperature 1 and decoding greedily."""
    asked = exam(task)
    sampled = _share_solved(model, tokenizer, asked * SAMPLES, task, do_sample=True, top_k=0)
    return sampled, _share_solved(model, tokenizer, asked, task, do_sample=False)


def _share_solved(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[Problem], task: str, **options: Any
) -> float:
    texts = write(model, tokenizer, [problem.prompt for problem in asked], task, **options)
    return sum(problem.is_solved_by(text) for problem, text in zip(asked, texts, strict=True)) / len(asked)


@torch.no_grad()
def write(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], task: str, **options: Any
) -> list[str]:
    """What a model writes after prompts; empty where it does not come to an end."""
    was_training = model.training
    model.eval()
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, return_token_type_ids=False)
    config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS[task] + 16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    written = model.generate(**inputs, generation_config=config)[:, inputs.input_ids.shape[1] :]
    model.train(was_training)
    ended = (written == tokenizer.eos_token_id).any(1).tolist()
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [text if end else "" for text, end in zip(texts, ended, strict=True)]
