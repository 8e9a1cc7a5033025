"""Steps that do not train on rollouts: which ones they are, and what the teacher writes for them."""

from collections.abc import Mapping, Sequence
from random import Random

from torch import Tensor
from transformers import GenerationConfig

from ..alignment.aligner import TokenizerAligner
from ..alignment.completions import answer_space
from ..alignment.templates import stop_ids
from ..errors import DataError
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator, unpad
from .rollouts import end_ids, generate_completions
from .scoring import causal_lm
from .teachers import LocalTeacher


def is_on_policy(args: CrossTokenizerGKDConfig, step: int) -> bool:
    """Whether the student writes the completions of an optimizer step: `lmbda` says how often.

    The same on every rank and in a run that was resumed.
    """
    return Random(f"{args.seed} {step}").random() < args.lmbda


def read_completions(batches: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
    """The dataset's completion for each prompt of the batches, which [`PromptCollator`] made.

    Raises:
        DataError: If a batch has none.
    """
    for batch in batches:
        if "completions" not in batch:
            raise DataError(
                f"The dataset's completions are asked for (`lmbda` below 1 without `seq_kd`, or `eval_on_dataset`), "
                f"but a batch holds {', '.join(batch)}: one of its rows has no completion. Give every row one, or set "
                "`lmbda=1.0`, `seq_kd=True` or `eval_on_dataset=False`; a data collator of your own must return "
                "`completions` and `completion_attention_mask`."
            )
    return _rows(batches, "completions", "completion_attention_mask")


class TeacherWriter:
    """Lets the teacher write (`seq_kd`), in its own tokens and after its own prompt, and spells it for the student.

    Args:
        teacher: Who writes.
        collator: Knows both tokenizers.
        args: `temperature` and `max_new_tokens`, which bounds the tokens of either side.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        collator: PromptCollator,
        args: CrossTokenizerGKDConfig,
    ):
        self._teacher, self._args = teacher, args
        stops = stop_ids(collator.teacher_tokenizer, chat_template=collator.teacher_chat_template)
        stops |= end_ids(teacher.model.generation_config)
        # Other control tokens are no text either: a student would learn to spell them.
        self._controls = frozenset(collator.teacher_tokenizer.all_special_ids) - stops
        self._aligner = TokenizerAligner(
            collator.teacher_tokenizer,
            collator.student_tokenizer,
            student_stop_ids=stops,
        )
        self._tokenizer = collator.teacher_tokenizer
        self._prompt_end, self._space = answer_space(
            collator.teacher_tokenizer,
            chat_template=collator.teacher_chat_template,
            chat_template_kwargs=collator.teacher_chat_template_kwargs,
        )
        self._generation_config = GenerationConfig(
            max_new_tokens=args.max_new_tokens,
            do_sample=True,
            temperature=args.temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(stops) or None,
            # Masked out wherever it stands.
            pad_token_id=0,
        )

    def __call__(self, batches: Sequence[Mapping[str, Tensor]]) -> list[list[int]]:
        """A completion in the student's tokens for each prompt of the batches, which [`PromptCollator`] made."""
        prompts = _rows(batches, "teacher_prompts", "teacher_prompt_attention_mask")
        batch_size = self._args.generation_batch_size or self._args.per_device_train_batch_size
        model = causal_lm(self._teacher.model)
        with self._teacher.on_device():
            device = model.get_input_embeddings().weight.device
            written = generate_completions(model, prompts, self._generation_config, batch_size, device)
        answers = (self._without_space(*pair) for pair in zip(prompts, written, strict=True))
        return [self._for_student(ids) for ids in answers]

    def _without_space(self, prompt: Sequence[int], teacher_ids: Sequence[int]) -> Sequence[int]:
        """What the teacher wrote, without the white space that only its own template puts before an answer."""
        if not self._space or not self._tokenizer.decode(prompt).rstrip().endswith(self._prompt_end):
            return teacher_ids
        return self._aligner.without_start(teacher_ids, self._space)

    def _for_student(self, teacher_ids: Sequence[int]) -> list[int]:
        end = next((place for place, token in enumerate(teacher_ids) if token in self._controls), None)
        alignment = self._aligner.align(teacher_ids := teacher_ids[:end])
        # A text with a hole in it is not what the teacher wrote; what stands before the hole is.
        holes = (place for place, reason in enumerate(alignment.drop_reasons) if reason not in (None, "no_text"))
        if (hole := next(holes, None)) is not None:
            alignment = self._aligner.align(teacher_ids[:hole])
        return alignment.teacher_ids[: self._args.max_new_tokens]


def _rows(batches: Sequence[Mapping[str, Tensor]], ids: str, mask: str) -> list[list[int]]:
    return [row for batch in batches for row in unpad(batch[ids], batch[mask])]
