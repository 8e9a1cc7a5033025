"""What is compared: each arm is a trainer, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, Trainer

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.alignment.aligner import Alignment

from .models import load
from .tasks import problems


BATCH = 32
# Folders of the teachers: with a tokenizer of its own, and with the student's.
TEACHER_NAME, SAME_TOKENIZER = "teacher", "teacher_same"
MAX_NEW_TOKENS = {"digits": 64, "words": 72}


@dataclass(frozen=True, slots=True)
class Setting:
    """Where one run takes place.

    Attributes:
        folder: Of the task: holds the models and the teacher's texts.
        task: Its name.
        seed: Of the student, of the data and of the run.
        steps: Of the optimizer.
        learning_rate: At its peak.
    """

    folder: Path
    task: str
    seed: int
    steps: int
    learning_rate: float

    @property
    def student(self) -> Path:
        """The cold-started student of this seed."""
        return self.folder / f"student-{self.seed}"

    def arguments(self) -> dict[str, Any]:
        """What every trainer is given."""
        return {
            "output_dir": str(self.folder / "unused"),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 10,
            "max_steps": self.steps,
            "per_device_train_batch_size": BATCH,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 10,
            "max_length": 256,
            "gradient_checkpointing": False,
            "activation_checkpointing": False,
            "seed": self.seed,
        }

    def prompts(self) -> list[str]:
        """The problems that an on-policy run poses."""
        source = problems(self.task, self.seed, held_out=False)
        return [problem.prompt for problem in islice(source, BATCH * self.steps)]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train.

    Attributes:
        build: Makes the trainer, rollouts, loss and all.
        learning_rate: At its peak.
        longer: How many times as many steps as the others it takes.
        teacher: Which teacher it learns from.
        reads: Whether it reads what the teacher wrote, which then belongs to its cost.
    """

    build: Callable[[Setting], Trainer]
    learning_rate: float = 3e-4
    longer: int = 1
    teacher: str = TEACHER_NAME
    reads: bool = False


def fine_tune(student: Path, rows: Dataset, arguments: dict[str, Any]) -> Trainer:
    """TRL's `SFTTrainer` on prompts and completions."""
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(student)
    trainer = SFTTrainer(model, args=SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def sft(setting: Setting) -> Trainer:
    """On what the teacher wrote, each text once."""
    written = Dataset.from_json(str(setting.folder / "written.jsonl"), cache_dir=str(setting.folder / "cache"))
    rows = written.shuffle(setting.seed).select(range(BATCH * setting.steps))
    return fine_tune(setting.student, rows, setting.arguments())


def ours(setting: Setting, *, teacher: str = TEACHER_NAME, **options: Any) -> CrossTokenizerGKDTrainer:
    """Our trainer with what it takes from its defaults, but for `options`."""
    (model, tokenizer), (teacher_model, teacher_tokenizer) = load(setting.student), load(setting.folder / teacher)
    config = CrossTokenizerGKDConfig(
        **setting.arguments(), max_new_tokens=MAX_NEW_TOKENS[setting.task], min_coverage=0.0, **options
    )
    return CrossTokenizerGKDTrainer(
        model,
        teacher_model,
        config,
        train_dataset=Dataset.from_dict({"prompt": setting.prompts()}),
        processing_class=tokenizer,
        teacher_processing_class=teacher_tokenizer,
    )


def gold(setting: Setting, *, merge: str) -> Trainer:
    """TRL's trainer for two tokenizers, with its hybrid loss."""
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    model, tokenizer = load(setting.student)
    # Samples take the place of the answers.
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": "?"}] for prompt in setting.prompts()
    ]
    config = GOLDConfig(
        **setting.arguments(),
        max_completion_length=MAX_NEW_TOKENS[setting.task],
        lmbda=1.0,
        temperature=1.0,
        top_p=1.0,
        use_uld_loss=True,
        uld_use_hybrid_loss=True,
        uld_token_merge_strategy=merge,
        teacher_tokenizer_name_or_path=str(setting.folder / TEACHER_NAME),
    )
    return GOLDTrainer(
        model,
        teacher_model=load(setting.folder / TEACHER_NAME)[0],
        args=config,
        train_dataset=Dataset.from_dict({"messages": chats}),
        processing_class=tokenizer,
    )


def randomly_aligned(setting: Setting, **options: Any) -> CrossTokenizerGKDTrainer:
    """Ours, but the teacher's tokens are cut at random places into as many chunks."""
    trainer = ours(setting, **options)
    align, random = trainer.aligner.align, Random(setting.seed)
    trainer.aligner.align = lambda student_ids: _cut_at_random(align(student_ids), random)
    return trainer


def _cut_at_random(alignment: Alignment, random: Random) -> Alignment:
    inside = [place for place, chunk in enumerate(alignment.teacher_chunks) if chunk >= 0]
    starts = {0, *random.sample(range(1, len(inside)), max(alignment.num_chunks - 1, 0))}
    chunks, chunk = [-1] * len(alignment.teacher_ids), -1
    for number, place in enumerate(inside):
        chunk += number in starts
        chunks[place] = chunk
    return replace(alignment, teacher_chunks=chunks)


def _arm(build: Callable[..., Trainer], *, learning_rate: float = 3e-4, **options: Any) -> Arm:
    return Arm(partial(build, **options), learning_rate)


_REVERSE: dict[str, Any] = {"beta": 1.0}
ARMS: dict[str, Arm] = {
    "SFT on the teacher's texts": Arm(sft, learning_rate=1e-3, longer=2, reads=True),
    # At 1e-4 it solves nothing any more.
    "TRL GOLD, observed merge": _arm(gold, learning_rate=1e-5, merge="observed"),
    "TRL GOLD, bayesian merge": _arm(gold, learning_rate=1e-5, merge="bayesian"),
    "chunk_rkl, proportional": _arm(ours, credit="proportional"),
    "chunk_rkl, additive": _arm(ours, credit="additive"),
    "chunk_rkl, uniform": _arm(ours, credit="uniform"),
    "chunk_rkl, chunk": _arm(ours, credit="chunk"),
    "chunk_rkl, proportional, text": _arm(ours, credit="proportional", segmentation="text"),
    "chunk_rkl, additive, mean baseline": _arm(ours, credit="additive", advantage_baseline="mean"),
    "chunk_rkl, position baseline": _arm(ours, advantage_baseline="position"),
    "chunk_rkl, position baseline, as cut": _arm(ours, advantage_baseline="position", max_lookahead=1.0),
    "chunk_rkl, 1:1 chunks only": _arm(ours, one_to_one_only=True),
    "chunk_rkl, at most two tokens": _arm(ours, max_chunk_tokens=2),
    "chunk_rkl, no white space": _arm(ours, drop_whitespace=True),
    "chunk_rkl, random alignment": _arm(randomly_aligned, credit="proportional"),
    # At this rate the student leaves its own tokenization; then what is there against it.
    "chunk_rkl, 2e-3": _arm(ours, learning_rate=2e-3),
    "chunk_rkl, text, 2e-3": _arm(ours, learning_rate=2e-3, segmentation="text"),
    "chunk_rkl, guard, 2e-3": _arm(ours, learning_rate=2e-3, canonical_guard=2.0),
    "chunk_rkl, clip, 2e-3": _arm(ours, learning_rate=2e-3, advantage_clip=1.0),
    "chunk_rkl, cross-entropy, 2e-3": _arm(ours, learning_rate=2e-3, lmbda=0.8, seq_kd=True, crossentropy_weight=0.1),
    "chunk_jsd": _arm(ours, learning_rate=1e-3, objective="chunk_jsd", **_REVERSE),
    "shared_vocab_jsd": _arm(ours, objective="shared_vocab_jsd", **_REVERSE),
    "hybrid": _arm(ours, objective="hybrid", **_REVERSE),
    "hybrid, chunk_weight 0.1": _arm(ours, objective="hybrid", chunk_weight=0.1, **_REVERSE),
    "prefix_jsd": _arm(ours, objective="prefix_jsd", **_REVERSE),
    "prefix_jsd, 1e-3": _arm(ours, learning_rate=1e-3, objective="prefix_jsd", **_REVERSE),
    "prefix_jsd, 2e-3": _arm(ours, learning_rate=2e-3, objective="prefix_jsd", **_REVERSE),
    "prefix_jsd, as cut": _arm(ours, objective="prefix_jsd", max_lookahead=1.0, **_REVERSE),
    # "Joined" is over cuts that the student would mostly have undone; `prefix_jsd` and "position" do so by themselves.
    "chunk_rkl, joined": _arm(ours, max_lookahead=0.1),
    "chunk_jsd, joined": _arm(ours, learning_rate=1e-3, objective="chunk_jsd", max_lookahead=0.1, **_REVERSE),
    "hybrid, joined": _arm(ours, learning_rate=1e-3, objective="hybrid", max_lookahead=0.1, **_REVERSE),
    "one tokenizer: exact_jsd": Arm(
        partial(ours, teacher=SAME_TOKENIZER, objective="exact_jsd", **_REVERSE),
        learning_rate=1e-3,
        teacher=SAME_TOKENIZER,
    ),
}
