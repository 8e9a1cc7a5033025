"""Dataset rows -> prompts in the tokens of both models, and completions in those of the student.

Each model gets its own prompt: plain text as it is, messages in its own chat template. Completions are read by
off-policy steps only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..alignment.completions import Side, check_tool_calls, completion_ids, first_token_end
from ..alignment.templates import prompt_ids
from ..errors import DataError
from .dataset_formats import (
    Prompt,
    find_completion,
    find_reference,
    read_completion,
    read_prompt,
    read_template_kwargs,
    read_tools,
)


def decode_references(batch: Mapping[str, Tensor]) -> list[str | None]:
    """What `find_reference` found for each row of a batch that [`PromptCollator`] made."""
    return [bytes(row).decode() if row else None for row in unpad(batch["references"], batch["reference_mask"])]


@dataclass
class PromptCollator:
    """Tokenize the prompts of a batch for both models, padded on the left.

    Args:
        student_tokenizer: Tokenizer of the student.
        teacher_tokenizer: Tokenizer of the teacher.
        student_limit: Longest prompt in student tokens, or `None`.
        teacher_limit: Longest prompt in teacher tokens, or `None`.
        student_vocab_size: Rows of the student's embedding, or `None` for no check.
        teacher_vocab_size: Rows of the teacher's embedding, or `None` for no check.
        chat_template_kwargs: Arguments of the student's chat template.
        teacher_chat_template_kwargs: Arguments of the teacher's chat template.
        teacher_chat_template: Template for a teacher whose tokenizer has none.
        with_completions: Whether completions are to be read where all rows of a batch have one.
        student_context: Most tokens of prompt and completion; a completion that is longer is cut off. `None` for no
            limit.
        with_references: Whether `references`, the completions as bytes of text, are to be read.
        text_field: Column with plain text to read as a completion, where there is no prompt; `None` refuses such rows.
    """

    student_tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase
    student_limit: int | None = None
    teacher_limit: int | None = None
    student_vocab_size: int | None = None
    teacher_vocab_size: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    teacher_chat_template_kwargs: dict[str, Any] | None = None
    teacher_chat_template: str | None = None
    with_completions: bool = False
    student_context: int | None = None
    with_references: bool = False
    text_field: str | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `prompts`, `teacher_prompts`, and what else is to be read, `[batch, length]`, and masks."""
        examples = [self.split_text(example) for example in examples]
        sides = [self.tokenize_row(example) for example in examples]
        student, teacher = zip(*sides, strict=True)
        prompts, attention_mask = left_pad(student, self.student_tokenizer.pad_token_id)
        teacher_prompts, teacher_attention_mask = left_pad(teacher, 0)
        batch = {
            "prompts": prompts,
            "prompt_attention_mask": attention_mask,
            "teacher_prompts": teacher_prompts,
            "teacher_prompt_attention_mask": teacher_attention_mask,
        }
        # Prompts to evaluate on may come without.
        if self.with_completions and all(map(find_completion, examples)):
            rows = [self.completion(example, prompt) for example, prompt in zip(examples, student, strict=True)]
            batch["completions"], batch["completion_attention_mask"] = left_pad(rows, 0)
        if self.with_references:
            # Tensors, since accelerate may cut a batch up for several processes.
            references = [list((find_reference(example) or "").encode()) for example in examples]
            batch["references"], batch["reference_mask"] = left_pad(references, 0)
        return batch

    def of(self, example: Mapping[str, Any]) -> "PromptCollator":
        """What tokenizes for the teacher of a row."""
        return self

    @property
    def parts(self) -> "Mapping[str, PromptCollator]":
        """One for each teacher, by its name; that of a single one is empty."""
        return {"": self}

    def completion(self, example: Mapping[str, Any], prompt: Sequence[int]) -> list[int]:
        """The completion of a dataset row in student tokens, as far as there is room for it after its prompt.

        Args:
            example: The row.
            prompt: Its prompt in student tokens.

        Raises:
            DataError: If there is none, or it has tokens that the student lacks.
            TemplateError: If one of the templates does not write it, or the two write its tool calls in two ways.
        """
        sides = self._sides(example)
        texts = read_prompt(example), read_completion(example)
        (tokenizer, options), _ = sides
        ids = completion_ids(tokenizer, *texts, **options)
        check_tool_calls(*texts, *sides)
        if self.student_context is not None:
            ids = ids[: self.student_context - len(prompt)]
        _check_ids("student", ids, self.student_vocab_size, self.student_tokenizer)
        return ids

    def split_text(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its first token as the prompt, which nothing stands before, if it is plain text without one.

        Raises:
            DataError: If the text has nothing else.
        """
        if self.text_field not in example or {"prompt", "messages", "conversations"} & example.keys():
            return example
        text = example[self.text_field]
        end = first_token_end(self.student_tokenizer, text) if isinstance(text, str) else 0
        if not isinstance(text, str) or end >= len(text):
            raise DataError(
                f"`{self.text_field}` is {text!r}, which must be text of two tokens or more: the first one is what "
                "the others are predicted from. Remove such rows, for example with `dataset.filter`."
            )
        return {**example, "prompt": text[:end], "completion": text[end:]}

    def tokenize_row(self, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The prompt of a dataset row, with the tools and template arguments of the row; see `tokenize`."""
        return self._tokenize(read_prompt(example), example)

    def tokenize(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """The prompt in student tokens and in teacher tokens.

        Raises:
            DataError: If it is empty or longer than one of the models can take.
        """
        return self._tokenize(prompt, {})

    def _tokenize(self, prompt: Prompt, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        student, teacher = (prompt_ids(tokenizer, prompt, **options) for tokenizer, options in self._sides(example))
        _check_length("student", student, self.student_limit, prompt)
        _check_length("teacher", teacher, self.teacher_limit, prompt)
        _check_ids("student", student, self.student_vocab_size, self.student_tokenizer)
        _check_ids("teacher", teacher, self.teacher_vocab_size, self.teacher_tokenizer)
        return student, teacher

    def _sides(self, example: Mapping[str, Any]) -> tuple[Side, Side]:
        """Both tokenizers, and how they render a row; what the row says comes before what the run says."""
        tools = read_tools(example)
        own = read_template_kwargs(example, "chat_template_kwargs")
        teachers = read_template_kwargs(example, "teacher_chat_template_kwargs")
        student = {"tools": tools, "chat_template_kwargs": {**(self.chat_template_kwargs or {}), **own}}
        teacher = {
            "tools": tools,
            "chat_template_kwargs": {**(self.teacher_chat_template_kwargs or {}), **teachers},
            "chat_template": self.teacher_chat_template,
        }
        return (self.student_tokenizer, student), (self.teacher_tokenizer, teacher)


def _check_ids(side: str, ids: Sequence[int], vocab_size: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    largest = max(ids, default=0)
    if vocab_size is not None and largest >= vocab_size:
        raise DataError(
            f"A row holds the {side} token {tokenizer.convert_ids_to_tokens(largest)!r} with the id {largest}, but "
            f"the {side}'s embedding has {vocab_size} rows. Are the two tokenizers the right way round? Else resize "
            "the embedding, or remove the token from tokenizer or chat template."
        )


def _check_length(side: str, ids: Sequence[int], limit: int | None, prompt: Prompt) -> None:
    if ids and (limit is None or len(ids) <= limit):
        return
    beginning = str(prompt)[:80]
    if not ids:
        raise DataError(f"The prompt {beginning!r} has no {side} tokens, so there is nothing to predict from.")
    raise DataError(
        f"A prompt has {len(ids)} {side} tokens, but only {limit} leave room for the completion within the model's "
        f"context and `max_length`. It begins {beginning!r}. Lower `max_new_tokens`, raise `max_length`, or filter or "
        "shorten the prompts."
    )


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows padded on the left, and the mask of what is not padding; both `[batch, length]`."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :] = torch.tensor(row)
        mask[number, length - len(row) :] = 1
    return ids, mask


def unpad(ids: Tensor, mask: Tensor) -> Iterator[list[int]]:
    """The rows of a padded batch, as lists without padding."""
    for row, keep in zip(ids.tolist(), mask.tolist(), strict=True):
        yield [token for token, kept in zip(row, keep, strict=True) if kept]
