"""Completions that somebody else wrote, in the student's tokens."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from ..errors import TemplateError
from .spelling import Spelling
from .templates import PROBE, Message, Tool, check_message, encode, render, stop_ids
from .text_encoder import TextEncoder


# A tokenizer, and how its template renders: arguments of `completion_ids`.
Side = tuple[PreTrainedTokenizerBase, Mapping[str, Any]]


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
    options: tuple[Any, ...] = (chat_template, dict(chat_template_kwargs or {}), tools)
    before, whole = _render(tokenizer, prompt, completion, options)
    begun, ids = encode(tokenizer, before), encode(tokenizer, whole)
    # White space at the beginning of an answer may be one token with that before it.
    ids = ids[len(begun) :] if ids[: len(begun)] == begun else encode(tokenizer, whole[len(before) :])
    stops = stop_ids(tokenizer, chat_template=chat_template)
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    return ids[: end + 1]


def check_tool_calls(
    prompt: str | Sequence[Message], completion: str | Sequence[Message], student: Side, teacher: Side
) -> None:
    """Refuse tool calls of a completion that the teacher's template writes in another way than the student's.

    The teacher would be asked how likely it finds a notation that is not its own.

    Args:
        prompt: As for `completion_ids`.
        completion: As for `completion_ids`.
        student: The student's tokenizer, and arguments of `completion_ids`.
        teacher: Those of the teacher.

    Raises:
        TemplateError: If the two texts differ, or a template does not write the calls.
    """
    if isinstance(prompt, str) or isinstance(completion, str) or not any(m.get("tool_calls") for m in completion):
        return
    texts: list[str] = []
    for tokenizer, options in (student, teacher):
        template = cast("str | None", options.get("chat_template"))
        variables = dict(options.get("chat_template_kwargs") or {})
        before, whole = _render(tokenizer, prompt, completion, (template, variables, options.get("tools")))
        stops = cast("list[str]", tokenizer.convert_ids_to_tokens([*stop_ids(tokenizer, chat_template=template)]))
        text = whole[len(before) :]
        texts.append(text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))].strip())
    if texts[0] != texts[1]:
        raise TemplateError(
            f"The student's chat template writes the completion with tool calls as {texts[0]!r:.300}, the teacher's "
            f"as {texts[1]!r:.300}. The teacher cannot score a notation that is not its own. Give templates or "
            "template arguments that write both alike (`chat_template_path`, `teacher_chat_template_path`, "
            "`chat_template_kwargs`), set `lmbda=1.0` or `seq_kd=True`, or leave out such rows."
        )


def answer_space(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """The end of a prompt in the chat template, and the white space that it writes between this and every answer.

    A model that was trained on such a template begins its answers with that space, as Mistral's do (`[/INST] Hello`).
    Both are empty if there is none.
    """
    user: list[Message] = [{"role": "user", "content": PROBE}]
    options: tuple[Any, ...] = (chat_template, dict(chat_template_kwargs or {}), None)
    try:
        before, whole = _render(tokenizer, user, [{"role": "assistant", "content": PROBE}], options)
    except TemplateError:
        return "", ""
    end, space = before.rpartition(PROBE)[2].strip(), whole[len(before) :].partition(PROBE)[0]
    return (end, space) if end and space.isspace() else ("", "")


def first_token_end(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """The number of characters in the first token of a text, and in those that share a character with it."""
    offsets = cast(Any, tokenizer)(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return next((end for _, end in offsets if end > 0), len(text))


def _render(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    options: tuple[Any, ...],
) -> tuple[str, str]:
    """The prompt, and the whole conversation, which begins with it."""
    _check_answer(prompt, completion)
    before = render(tokenizer, prompt, *options, add_generation_prompt=True)
    whole = render(tokenizer, [*prompt, *completion], *options, add_generation_prompt=False)
    if not whole.startswith(before):
        raise TemplateError(
            f"The chat template writes {before[-80:]!r} at the end of a prompt, but the whole conversation does not "
            f"go on from there: {whole[-80:]!r}. Give a template that writes both alike, for example with other "
            "`chat_template_kwargs`."
        )
    _check_nothing_lost(tokenizer, prompt, completion[0], whole, options)
    return before, whole


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
        without = {"content": "", **{name: given for name, given in answer.items() if name != part}}
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
