"""What the figures of an audit mean: a verdict in plain words, and what to look at before training."""

from collections.abc import Iterator, Sequence
from typing import Literal

from .audit_sides import TokenizerSide, VocabularyRelation
from .text_audit import REASONS, TextAudit


Level = Literal["same vocabulary", "good", "usable", "unusable"]
# Coverage of everything from which on a pair is good, and of one class of text below which it is worth a warning.
_GOOD, _POOR = 0.99, 0.9
# Teacher tokens per student token above which its memory and context are worth a warning.
_LONG = 1.5


def judge(vocabulary: VocabularyRelation, total: TextAudit, min_coverage: float) -> Level:
    """How well a pair does, from its vocabularies and all texts together."""
    if vocabulary.name == "equal":
        return "same vocabulary"
    if total.coverage < min_coverage or not total.chunks:
        return "unusable"
    return "good" if total.coverage >= _GOOD else "usable"


def verdict(level: Level, total: TextAudit, min_coverage: float) -> str:
    """The level in words, with what `objective="auto"` chooses and why."""
    if level == "same vocabulary":
        return (
            "One vocabulary: both tokenizers spell the same bytes id by id, so nothing has to be aligned and "
            "`objective='auto'` chooses `exact_jsd`, which is GKD's own loss. TRL's `DistillationTrainer` computes it "
            "too, and samples with vLLM; use that unless you need something that only this package has."
        )
    shares = (
        f"{total.coverage:.1%} of the student's tokens in {total.name} can be trained on, and "
        f"{total.one_to_one_share:.0%} of the chunks are one token on either side."
    )
    choice = "The vocabularies differ, so `objective='auto'` chooses `chunk_rkl`, which compares whole chunks."
    if level == "unusable":
        return (
            f"This pair does not work: only {shares} That is less than `min_coverage={min_coverage}`, so training "
            "would stop. Choose another teacher, or texts that it can spell."
        )
    if level == "good":
        return f"A good pair: {shares} {choice}"
    return f"This pair can be used, with a loss: {shares} {choice} What is dropped teaches the student nothing."


def warnings(
    student: TokenizerSide,
    teacher: TokenizerSide,
    vocabulary: VocabularyRelation,
    texts: Sequence[TextAudit],
    total: TextAudit,
) -> Iterator[str]:
    """What to look at before training, the gravest first."""
    if poor := [text for text in texts if text.coverage < _POOR]:
        shares = ", ".join(f"{text.name} ({text.coverage:.0%})" for text in poor)
        reasons = sorted({reason for text in poor for reason in text.dropped})
        yield f"Of these less can be trained on: {shares}. Why: {', '.join(REASONS[reason] for reason in reasons)}."
    if teacher.end_of_turn is None:
        yield (
            "The teacher has no token that ends a turn, so the student's stop tokens are dropped and it does not "
            "learn from this teacher when to stop."
        )
    if not student.stops:
        yield "The student has no token that ends a text, so its completions end at the length limit only."
    if not teacher.has_chat_template:
        yield (
            "The teacher has no chat template: datasets of conversations are refused unless "
            "`teacher_chat_template_path` names one. Plain-text prompts work."
        )
    if not student.has_chat_template:
        yield (
            "The student has no chat template: datasets of conversations need `chat_template_path`. Plain-text "
            "prompts work."
        )
    if teacher.altered:
        yield (
            f"The teacher's tokenizer changes texts ({', '.join(teacher.normalizers)}), as it does "
            f"{_some(teacher.altered)} of the samples. What it changes is dropped and counted as `normalized`."
        )
    if student.altered:
        yield (
            f"The student's tokenizer changes texts ({', '.join(student.normalizers)}) before its model reads them "
            f"as prompts, as it does {_some(student.altered)} of the samples."
        )
    if vocabulary.name == "equal":
        return
    if vocabulary.name == "disjoint":
        yield "The vocabularies have no token in common, so the objectives that compare distributions are refused."
    if total.one_to_one_share < 0.5:
        yield (
            f"Only {total.one_to_one_share:.0%} of the chunks are one token on either side: `shared_vocab_jsd` would "
            "train on these alone. `chunk_rkl` and `prefix_jsd` train on all chunks."
        )
    if total.teacher_ratio > _LONG:
        yield (
            f"The teacher needs {total.teacher_ratio:.1f} tokens for each of the student's, so scoring takes as much "
            f"more time and memory. Give `trl-xtok plan` `--teacher_ratio {total.teacher_ratio:.1f}`."
        )


def _some(names: Sequence[str]) -> str:
    """How many there are, and the first few."""
    listed = ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")
    return f"{len(names)} ({listed})"
