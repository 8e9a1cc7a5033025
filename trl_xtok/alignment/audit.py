"""What to expect of a pair of tokenizers: how their vocabularies relate, what of a text survives, what gets lost.

Nothing here is a model's quality. It says which share of what the student writes the teacher can score, and why not
the rest, before any weights are loaded.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from .aligner import TokenizerAligner
from .audit_samples import SAMPLES
from .audit_sides import AddedTokens, TokenizerSide, VocabularyRelation, compare_added, describe_side, relate
from .audit_verdict import Level, judge, verdict, warnings
from .templates import end_of_turn_id, stop_ids
from .text_audit import TextAudit, add_up, audit_text
from .token_bytes import token_bytes


@dataclass(frozen=True, slots=True)
class TokenizerAudit:
    """What to expect of a student and a teacher, from their tokenizers alone.

    Attributes:
        student: The student's tokenizer.
        teacher: The teacher's.
        vocabulary: What their vocabularies have in common.
        added: What they have in common beside text tokens.
        samples: The built-in texts, class by class.
        texts: The caller's texts.
        total: All of the caller's texts together, or all samples if there are none. The verdict is about these.
        objective: What `objective="auto"` chooses.
        level: `same vocabulary`, `good`, `usable` or `unusable`.
        verdict: The same in words, with the reason for the objective.
        warnings: What to look at before training.
    """

    student: TokenizerSide
    teacher: TokenizerSide
    vocabulary: VocabularyRelation
    added: AddedTokens
    samples: tuple[TextAudit, ...]
    texts: tuple[TextAudit, ...]
    total: TextAudit
    objective: Literal["exact_jsd", "chunk_rkl"]
    level: Level
    verdict: str
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        written = asdict(self)
        written["added"]["special"] = sorted(self.added.special)
        for name in ("samples", "texts"):
            written[name] = [text.to_dict() for text in getattr(self, name)]
        return written | {"total": self.total.to_dict(), "warnings": list(self.warnings)}


def audit_tokenizers(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    *,
    texts: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    teacher_chat_template: str | None = None,
    min_coverage: float = 0.5,
) -> TokenizerAudit:
    """Find out what to expect when this student learns from this teacher. Takes a second or two, and no weights.

    Args:
        student: The student's fast tokenizer.
        teacher: The teacher's fast tokenizer.
        texts: Texts of your own, by name: completions such as the student is to write. The verdict is then about them.
        chat_template: Template of the student instead of its tokenizer's own.
        teacher_chat_template: Template of the teacher instead of its tokenizer's own.
        min_coverage: As in the training arguments: the least share of tokens that has to be trained on.

    Raises:
        TokenizerError: If it is not known what the tokens of one of the tokenizers spell.
        DataError: If the caller's texts are all empty.

    Example:
        `audit_tokenizers(student_tokenizer, teacher_tokenizer).verdict`
    """
    aligner = TokenizerAligner(
        student,
        teacher,
        student_stop_ids=stop_ids(student, chat_template=chat_template),
        teacher_end_id=None
        if teacher_chat_template is None
        else end_of_turn_id(teacher, chat_template=teacher_chat_template),
    )
    table = token_bytes(student)
    sides = describe_side(student, SAMPLES, chat_template), describe_side(teacher, SAMPLES, teacher_chat_template)
    vocabulary = relate(student, teacher)
    samples = tuple(audit_text(aligner, table, name, text) for name, text in SAMPLES.items())
    own = tuple(audit_text(aligner, table, name, text) for name, text in (texts or {}).items())
    if texts is not None and not any(text.student_tokens for text in own):
        raise DataError(f"The {len(own)} given texts are empty, so there is nothing to align. Give texts with text.")
    total = add_up("your texts" if own else "all samples", own or samples)
    level = judge(vocabulary, total, min_coverage)
    return TokenizerAudit(
        *sides,
        vocabulary=vocabulary,
        added=compare_added(student, teacher),
        samples=samples,
        texts=own,
        total=total,
        objective="exact_jsd" if aligner.same_vocabulary else "chunk_rkl",
        level=level,
        verdict=verdict(level, total, min_coverage),
        warnings=tuple(warnings(*sides, vocabulary, own or samples, total)),
    )
