"""Completions that somebody else wrote, in the student's tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..errors import TemplateError
from .spelling import Spelling
from .templates import Message, Tool, encode, render, stop_ids
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
        completion: Text if the prompt is text, else the messages that follow.
        chat_template: As for `prompt_ids`.
        chat_template_kwargs: As for `prompt_ids`.
        tools: As for `prompt_ids`.

    Raises:
        TemplateError: If prompt and completion are not of one kind, or the template does not begin the conversation as
            it begins the prompt.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        text = encode(tokenizer, prompt)
        whole = encode(tokenizer, prompt + completion)
        ids = whole[len(text) :] if whole[: len(text)] == text else _spelled(tokenizer, completion)
        end = cast("int | None", tokenizer.eos_token_id)
        return ids if end is None else [*ids, end]
    if isinstance(prompt, str) or isinstance(completion, str):
        raise TemplateError(
            f"The prompt is {'text' if isinstance(prompt, str) else 'a conversation'} and its completion is "
            f"{'text' if isinstance(completion, str) else 'messages'}. Give both as text or both as messages."
        )
    options: tuple[Any, ...] = (chat_template, dict(chat_template_kwargs or {}), tools)
    before = render(tokenizer, prompt, *options, add_generation_prompt=True)
    whole = render(tokenizer, [*prompt, *completion], *options, add_generation_prompt=False)
    begun, ids = encode(tokenizer, before), encode(tokenizer, whole)
    if ids[: len(begun)] != begun:
        raise TemplateError(
            f"The chat template writes {before[-80:]!r} at the end of a prompt, but the whole conversation does not "
            f"go on from there: {whole[-80:]!r}. Give a template that writes both alike, for example with other "
            "`chat_template_kwargs`."
        )
    ids = ids[len(begun) :]
    stops = stop_ids(tokenizer, chat_template=chat_template)
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    spelling = Spelling()
    TextEncoder(tokenizer, unicode_forms=False).spell(text.encode(), spelling)
    return [token for token in spelling.ids if token is not None]
