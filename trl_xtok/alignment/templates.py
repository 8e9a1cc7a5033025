"""The same conversation in each model's own chat template, and the token that ends a turn.

Both models see a prompt in the form they were trained on: their own template, their own first token, their own
end-of-turn token. Nothing here looks at completions; only the ids before a completion and the token after it matter.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jinja2 import TemplateError as JinjaError
from transformers import PreTrainedTokenizerBase

from ..errors import DataError, TemplateError, TokenizerError


Message = Mapping[str, Any]
Tool = dict[str, Any] | Callable[..., Any]

# One made-up word: no template trims, re-cases or splits it, and none contains it.
PROBE = "probeword"
_PROBE_TURN: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}]
_PROBE_CONVERSATIONS: tuple[list[Message], ...] = (
    _PROBE_TURN,
    # Some templates close a turn only when another one follows.
    [*_PROBE_TURN, {"role": "user", "content": "Hi"}],
    # Templates of multimodal models may accept nothing but a list of parts.
    [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in _PROBE_TURN],
)
# A template is foreign code: besides Jinja's own errors it can fail as any expression can, for example on
# `'User: ' + message['content']` with a list of parts.
_TEMPLATE_FAILURES = (JinjaError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_NOT_TEMPLATE_ARGUMENTS = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "conversation", "tokenize", "tools"}
)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    *,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Tool] | None = None,
) -> list[int]:
    """Token ids that a model reads before its completion.

    Plain text is encoded as it is. A conversation is rendered in the chat template, with the header of the assistant's
    turn as its end. Either way the tokens that the tokenizer puts before a text (BOS) stand at the start exactly once,
    whether or not the text or the template spells them too, and nothing (EOS, SEP) is appended. As everywhere in
    `transformers`, a special token that is spelled in a prompt becomes that special token.

    Args:
        tokenizer: The tokenizer of the model that reads the prompt.
        prompt: Text to be continued, or messages (`role`, `content`) that do not end with an assistant turn.
        chat_template: Jinja template, or the name of one of the tokenizer's templates; by default the tokenizer's own.
        chat_template_kwargs: Variables for the template, for example `{"enable_thinking": False}`.
        tools: JSON schemas or functions for the template.

    Raises:
        TemplateError: If the conversation is malformed, ends with an assistant turn, or cannot be rendered in full.
        DataError: If there is not one token to start from.

    Example:
        `prompt_ids(tokenizer, [{"role": "user", "content": "Hi"}])` with a ChatML template gives the ids of
        `<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n`.
    """
    if isinstance(prompt, str):
        text = prompt
    else:
        _check_conversation(prompt)
        text = _render_prompt(tokenizer, prompt, chat_template, dict(chat_template_kwargs or {}), tools)
    ids = encode(tokenizer, text)
    leading = leading_ids(tokenizer)
    # Template files are apt to start with a line break, so a BOS after white space counts as well.
    if encode(tokenizer, text.lstrip())[: len(leading)] != leading:
        ids = leading + ids
    if not ids:
        raise DataError(
            f"The prompt {prompt!r} has no tokens and {_name(tokenizer)} puts none before a text, so the model has "
            "nothing to start from. Leave empty prompts out of the dataset."
        )
    return ids


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> int | None:
    """The token with which the model says that its turn is over.

    It is the added token that the chat template writes right after the assistant's content, white space aside: a short
    conversation is rendered, and what follows its answer is read. Without a template, or if the template ends a turn
    with ordinary text or cannot render the conversation, it is the tokenizer's `eos_token_id`, which may be `None`.
    """
    if _has_template(tokenizer, chat_template):
        for conversation in _PROBE_CONVERSATIONS:
            try:
                text = render(tokenizer, conversation, chat_template, {}, None, add_generation_prompt=False)
            except TemplateError:
                continue
            _, probe, rest = text.rpartition(PROBE)
            ids = encode(tokenizer, rest.lstrip()) if probe else []
            if ids and ids[0] in tokenizer.added_tokens_decoder and ids[0] != tokenizer.bos_token_id:
                return ids[0]
    return cast("int | None", tokenizer.eos_token_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None) -> frozenset[int]:
    """Tokens that end a completion: `eos_token_id` and the template's end of turn; empty if there is neither."""
    ids = (cast("int | None", tokenizer.eos_token_id), end_of_turn_id(tokenizer, chat_template=chat_template))
    return frozenset(token_id for token_id in ids if token_id is not None)


def load_chat_template(path: str | Path) -> str:
    """Read a Jinja chat template from a file, or from `chat_template.jinja` in a folder.

    Raises:
        TemplateError: If there is no such file, or it is empty or not UTF-8.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "chat_template.jinja"
    if not file.is_file():
        raise TemplateError(
            f"There is no chat template at {str(file)!r}. Give the path of a Jinja file (for example "
            "`chat_template.jinja`), or of a folder that holds one under this name."
        )
    try:
        template = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(
            f"The chat template {str(file)!r} is not UTF-8 text ({error}). Save it as UTF-8."
        ) from error
    if not template.strip():
        raise TemplateError(
            f"The chat template {str(file)!r} is empty, so every conversation would be lost. Give another file."
        )
    return template


def _check_conversation(messages: Sequence[Message]) -> None:
    """Refuse what no template can render faithfully."""
    if not messages:
        raise TemplateError(
            "The conversation is empty, so there is nothing to answer. Leave such rows out of the dataset."
        )
    for index, message in enumerate(messages):
        check_message(index, message)
    if messages[-1]["role"] == "assistant":
        raise TemplateError(
            f"The conversation of {len(messages)} messages ends with an assistant turn, so there is nothing left to "
            "answer. Strip this turn first: it is the completion, not part of the prompt."
        )


def check_message(index: int, message: Message) -> None:
    """Refuse a message that no template can render faithfully; `index` is its place in the conversation."""
    # Rows come from users' files, where the declared type is only a hope.
    if not isinstance(cast(Any, message), Mapping) or not isinstance(message.get("role"), str):
        raise TemplateError(
            f"Message {index} of the conversation is {message!r}. Each message must be a dict with a `role` and a "
            "`content`, for example {'role': 'user', 'content': 'Hi'}."
        )
    content: Any = message.get("content")
    if isinstance(content, list):
        _check_parts(index, cast("list[Any]", content))
    elif not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TemplateError(
            f"Message {index} (role {message['role']!r}) has the content {content!r}. The content must be text; "
            "only a message with `tool_calls` may go without."
        )


def _check_parts(index: int, parts: list[Any]) -> None:
    for part in parts:
        if not isinstance(part, Mapping) or cast(Message, part).get("type") != "text":
            raise TemplateError(
                f"Message {index} of the conversation holds the part {part!r}. Only text can be aligned between two "
                "tokenizers; leave out rows with images, audio or video."
            )


def _render_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_template: str | None,
    variables: dict[str, Any],
    tools: Sequence[Tool] | None,
) -> str:
    """Render up to the header of the assistant's turn, and make sure that no message got lost on the way."""
    if not _has_template(tokenizer, chat_template):
        raise TemplateError(
            f"{_name(tokenizer)} has no chat template, so a conversation cannot be shown to its model. Give one as a "
            "Jinja file (`teacher_chat_template_path` for the teacher, `chat_template_path` for the student), or use "
            "a dataset of plain-text prompts."
        )
    if reserved := sorted(_NOT_TEMPLATE_ARGUMENTS & variables.keys()):
        raise TemplateError(
            f"The chat template variables contain {reserved}, which are settings of the prompt itself. Leave them "
            "out; only variables that the template reads belong there, for example {'enable_thinking': False}."
        )
    text = render(tokenizer, messages, chat_template, variables, tools, add_generation_prompt=True)
    for index, message in enumerate(messages):
        calls: Any = message.get("tool_calls")
        content: Any = message.get("content")
        if not calls and (not isinstance(content, str) or content.strip() in text):
            continue
        # The template may have rewritten the content (some read commands such as `/no_think` from it), which is its
        # right. But a message or tool calls that make no difference at all have been lost.
        bare = {"content": "", **{name: value for name, value in message.items() if name != "tool_calls"}}
        others = [*messages[:index], *([bare] if calls else []), *messages[index + 1 :]]
        try:
            same = text == render(tokenizer, others, chat_template, variables, tools, add_generation_prompt=True)
        except TemplateError:
            continue
        if same:
            raise TemplateError(
                f"The chat template of {_name(tokenizer)} leaves out {'the tool calls of ' if calls else ''}message "
                f"{index} (role {message['role']!r}, {str(calls or content)[:60]!r}): its rendering is the same "
                "without. Write it as text into another message, or give a template that knows it "
                "(`teacher_chat_template_path` for the teacher)."
            )
    return text


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_template: str | None,
    variables: dict[str, Any],
    tools: Sequence[Tool] | None,
    *,
    add_generation_prompt: bool,
) -> str:
    """Render with the tokenizer's own renderer; whatever the template raises becomes a `TemplateError`."""
    try:
        text = tokenizer.apply_chat_template(  # pyright: ignore[reportUnknownMemberType]
            [dict(message) for message in messages],
            tools=None if tools is None else list(tools),
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **variables,
        )
    except _TEMPLATE_FAILURES as error:
        roles = [message["role"] for message in messages]
        raise TemplateError(
            f"The chat template of {_name(tokenizer)} cannot render a conversation with the roles {roles}. It says: "
            f"{error} ({type(error).__name__}). Change the messages so that the template accepts them (a template "
            "that knows no system role wants that text in the first user message), or give another template "
            "(`teacher_chat_template_path` for the teacher)."
        ) from error
    return cast(str, text)


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that the tokenizer puts before every text: usually BOS, or nothing."""
    bare = encode(tokenizer, PROBE)
    wrapped = encode(tokenizer, PROBE, add_special_tokens=True)
    for start in range(len(wrapped) - len(bare) + 1):
        if wrapped[start : start + len(bare)] == bare:
            return wrapped[:start]
    raise TokenizerError(
        f"{_name(tokenizer)} encodes {PROBE!r} to {bare} without special tokens but to {wrapped} with them, so it is "
        "not clear which tokens belong before a text. Use the tokenizer's fast version."
    )


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """Token ids of a text of any length."""
    # `verbose=False` because a prompt longer than the tokenizer's idea of a maximum is the caller's business.
    return tokenizer.encode(  # pyright: ignore[reportUnknownMemberType]
        text, add_special_tokens=add_special_tokens, verbose=False
    )


def _has_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> bool:
    return chat_template is not None or cast(Any, tokenizer).chat_template is not None


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"{type(tokenizer).__name__} {cast(Any, tokenizer).name_or_path!r}"
