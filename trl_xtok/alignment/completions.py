"""Completions that somebody else wrote, in the student's tokens."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..errors import TemplateError
from .spelling import Spelling
from .templates import Message, Tool, check_message, encode, render, stop_ids
from .text_encoder import TextEncoder


def completion_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    completion: str | Sequence[Message],
    *,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """Token ids with which a model would go on after `prompt_ids`, its stop token included.

    Plain text is encoded together with the prompt where that leaves the prompt's tokens as they are, else apart, and
    is followed by `eos_token_id`. Of messages it is what the template adds to the prompt, up to the first stop token.

    Args:
        tokenizer: The tokenizer of the model that is to write it.
        prompt: As for `prompt_ids`.
        completion: Text if the prompt is text, else the assistant's message, as a list of one.
        chat_template: As for `prompt_ids`.
        chat_template_kwargs: As for `prompt_ids`.
        tools: As for `prompt_ids`.

    Raises:
        TemplateError: If prompt and completion are not of one kind, the completion is not one answer, or the template
            leaves some of it out or begins the conversation in another way than the prompt.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        text = encode(tokenizer, prompt)
        whole = encode(tokenizer, prompt + completion)
        ids = whole[len(text) :] if whole[: len(text)] == text else _spelled(tokenizer, completion)
        end = cast("int | None", tokenizer.eos_token_id)
        return ids if end is None or ids[-1:] == [end] else [*ids, end]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise TemplateError(
            f"The prompt is {'text' if isinstance(prompt, str) else 'a conversation'} and its completion is "
            f"{'text' if isinstance(completion, str) else 'messages'}. Give both as text or both as messages."
        )
    _check_answer(prompt, completion)
    options: tuple[Any, ...] = (chat_template, dict(chat_template_kwargs or {}), tools)
    before = render(tokenizer, prompt, *options, add_generation_prompt=True)
    whole = render(tokenizer, [*prompt, *completion], *options, add_generation_prompt=False)
    if not whole.startswith(before):
        raise TemplateError(
            f"The chat template writes {before[-80:]!r} at the end of a prompt, but the whole conversation does not "
            f"go on from there: {whole[-80:]!r}. Give a template that writes both alike, for example with other "
            "`chat_template_kwargs`."
        )
    _check_nothing_lost(tokenizer, prompt, completion[0], whole, options)
    begun, ids = encode(tokenizer, before), encode(tokenizer, whole)
    # White space at the beginning of an answer may be one token with that before it.
    ids = ids[len(begun) :] if ids[: len(begun)] == begun else encode(tokenizer, whole[len(before) :])
    stops = stop_ids(tokenizer, chat_template=chat_template)
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _check_answer(prompt: Sequence[Message], completion: Sequence[Message]) -> None:
    for index, message in enumerate(completion, start=len(prompt)):
        check_message(index, message)
    if [message["role"] for message in completion] != ["assistant"]:
        raise TemplateError(
            f"The completion is {completion!r:.200}. It must be one message of the role 'assistant', for example "
            "[{'role': 'assistant', 'content': 'Hello'}]; what stands before it belongs to the prompt."
        )


def _check_nothing_lost(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    answer: Message,
    whole: str,
    options: tuple[Any, ...],
) -> None:
    """Refuse an answer of which the template leaves something out."""
    for part in ("content", "tool_calls"):
        value = answer.get(part)
        if not value or (isinstance(value, str) and value.strip() in whole):
            continue
        without = {**answer, part: "" if part == "content" else None}
        if render(tokenizer, [*prompt, without], *options, add_generation_prompt=False) == whole:
            raise TemplateError(
                f"The chat template leaves out the `{part}` of the completion {dict(answer)!r:.200}: its rendering is "
                "the same without it. Give a template that writes it, or leave out such rows."
            )


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    spelling = Spelling()
    _text_encoder(tokenizer, len(tokenizer)).spell(text.encode(), spelling)
    return [token for token in spelling.ids if token is not None]


# Rows of a dataset come one by one, and an encoder takes longer to build than to use.
@lru_cache(maxsize=2)
def _text_encoder(tokenizer: PreTrainedTokenizerBase, size: int) -> TextEncoder:
    return TextEncoder(tokenizer, unicode_forms=False)
