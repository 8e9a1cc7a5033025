"""Dataset rows -> prompts in the tokens of both models, and completions in those of the student.

Prompts come from a `prompt` column (text or messages) or from `messages`, whose last assistant turn is left out: the
student writes the completion. Each model gets its own prompt: plain text as it is, messages in its own chat template.
Completions, which only off-policy steps read, come from a `completion` column or are that last assistant turn.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..alignment.completions import completion_ids
from ..alignment.templates import prompt_ids
from ..errors import DataError
from .trl_compat import is_conversational


Prompt = str | list[dict[str, Any]]
# Its names of roles, where they are others.
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}


def read_prompt(example: Mapping[str, Any]) -> Prompt:
    """The prompt of a dataset row: text, or messages without the assistant turn at their end.

    Raises:
        DataError: If the row has no column a prompt can be read from, or what it holds is not a prompt.
    """
    if images := [name for name in ("image", "images") if name in example]:
        raise DataError(
            f"The row has `{images[0]}`: {str(example[images[0]])[:80]}, and only text can be aligned between two "
            "tokenizers. Remove the column, or the rows that need it."
        )
    example = _from_sharegpt(example)
    column = next((name for name in ("prompt", "messages") if name in example), None)
    if column is None:
        raise DataError(
            f"The dataset has the columns {', '.join(example) or '(none)'}, and none holds a prompt. Give it a "
            "`prompt` column (text, or a list of messages), a `messages` or a `conversations` column."
        )
    prompt = example[column]
    if column == "messages" and isinstance(prompt, list) and prompt and _is_assistant_turn(prompt[-1]):
        prompt = prompt[:-1]
    if prompt in (None, "", []):
        raise DataError(
            f"The prompt is empty: `{column}` is {example[column]!r}. The student needs at least one token to start "
            "from; remove such rows, for example with `dataset.filter`."
        )
    if not isinstance(prompt, str | list):
        raise DataError(
            f"The prompt is {prompt!r}, which is a {type(prompt).__name__}. `{column}` must hold text or a list of "
            "messages, each with a `role` and a `content`."
        )
    return prompt


def read_completion(example: Mapping[str, Any]) -> Prompt:
    """The completion of a dataset row: text, or the messages that follow its prompt.

    Raises:
        DataError: If there is none.
    """
    completion = find_completion(example)
    if not completion or not isinstance(completion, str | list):
        raise DataError(
            f"`lmbda` below 1 without `seq_kd` trains on the dataset's completions, and a row with the columns "
            f"{', '.join(example)} has none: its completion is {completion!r}. Give it a `completion` column, or "
            "`messages` that end with an assistant turn; or set `lmbda=1.0` or `seq_kd=True`."
        )
    return completion


def find_completion(example: Mapping[str, Any]) -> Any:
    """What a dataset row says of how its prompt goes on, if anything."""
    example = _from_sharegpt(example)
    messages = example.get("messages")
    if example.get("completion") is None and "prompt" not in example and messages and _is_assistant_turn(messages[-1]):
        return messages[-1:]
    return example.get("completion")


def find_reference(example: Mapping[str, Any]) -> str | None:
    """The completion of a dataset row as text, if it is text or one message of text."""
    completion = find_completion(example)
    if isinstance(completion, list) and len(completion) == 1:
        completion = completion[0].get("content")
    return completion if isinstance(completion, str) else None


def decode_references(batch: Mapping[str, Tensor]) -> list[str | None]:
    """What `find_reference` found for each row of a batch that [`PromptCollator`] made."""
    return [bytes(row).decode() if row else None for row in unpad(batch["references"], batch["reference_mask"])]


def _from_sharegpt(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with `messages` where it has nothing but ShareGPT's `conversations`."""
    turns = example.get("conversations")
    if turns is None or "messages" in example:
        return example
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"`conversations` is {turns!r:.200}. It must be a list of turns with `from` and `value`.")
    messages = [_as_message(turn) for turn in turns]
    if isinstance(example.get("system"), str) and example["system"]:
        messages.insert(0, {"role": "system", "content": example["system"]})
    return {**example, "messages": messages}


def _as_message(turn: Mapping[str, Any]) -> dict[str, Any]:
    if "from" not in turn:
        return dict(turn)
    return {"role": _SHAREGPT.get(turn["from"], turn["from"]), "content": turn.get("value")}


def read_tools(example: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a dataset row offers to both models, as JSON schemas; `None` if it offers none.

    Raises:
        DataError: If they are no list, or the row wants template arguments of its own.
    """
    if example.get("chat_template_kwargs"):
        raise DataError(
            f"`chat_template_kwargs` is {example['chat_template_kwargs']!r}, but two templates are rendered here, and "
            "a row does not say which it means. Set `chat_template_kwargs` and `teacher_chat_template_kwargs` in the "
            "training arguments, and remove the column."
        )
    tools = example.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise DataError(f"`tools` is {tools!r}, which is not JSON ({error}). Give a list of JSON schemas.") from error
    if tools and not isinstance(tools, list):
        raise DataError(f"`tools` is {tools!r}, which is a {type(tools).__name__}. Give a list of JSON schemas.")
    return tools or None


def _is_assistant_turn(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "assistant"


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

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `prompts`, `teacher_prompts`, and what else is to be read, `[batch, length]`, and masks."""
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

    def completion(self, example: Mapping[str, Any], prompt: Sequence[int]) -> list[int]:
        """The completion of a dataset row in student tokens, as far as there is room for it after its prompt.

        Args:
            example: The row.
            prompt: Its prompt in student tokens.

        Raises:
            DataError: If there is none, or it has tokens that the student lacks.
        """
        ids = completion_ids(
            self.student_tokenizer,
            read_prompt(example),
            read_completion(example),
            chat_template_kwargs=self.chat_template_kwargs,
            tools=read_tools(example),
        )
        if self.student_context is not None:
            ids = ids[: self.student_context - len(prompt)]
        _check_ids("student", ids, self.student_vocab_size, self.student_tokenizer)
        return ids

    def tokenize_row(self, example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """The prompt of a dataset row, with the tools that the row offers; see `tokenize`."""
        return self.tokenize(read_prompt(example), read_tools(example))

    def tokenize(self, prompt: Prompt, tools: Sequence[dict[str, Any]] | None = None) -> tuple[list[int], list[int]]:
        """The prompt in student tokens and in teacher tokens.

        Raises:
            DataError: If it is empty or longer than one of the models can take.
        """
        student = prompt_ids(
            self.student_tokenizer, prompt, chat_template_kwargs=self.chat_template_kwargs, tools=tools
        )
        teacher = prompt_ids(
            self.teacher_tokenizer,
            prompt,
            chat_template=self.teacher_chat_template,
            chat_template_kwargs=self.teacher_chat_template_kwargs,
            tools=tools,
        )
        _check_length("student", student, self.student_limit, prompt)
        _check_length("teacher", teacher, self.teacher_limit, prompt)
        _check_ids("student", student, self.student_vocab_size, self.student_tokenizer)
        _check_ids("teacher", teacher, self.teacher_vocab_size, self.teacher_tokenizer)
        return student, teacher


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


def is_conversational_prompt(prompt: Prompt) -> bool:
    """Whether the prompt is a list of messages."""
    return is_conversational({"prompt": prompt})


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
