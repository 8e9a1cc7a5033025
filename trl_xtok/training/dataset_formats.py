"""The formats that dataset rows come in.

A prompt comes from a `prompt` column (text or messages) or from `messages` or ShareGPT's `conversations`, whose last
assistant turn is left out. A completion is a `completion` column or that last assistant turn.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import DataError
from .trl_compat import is_conversational, remove_none_values


Prompt = str | list[dict[str, Any]]
# Its names of roles, where they are others.
_SHAREGPT = {"human": "user", "gpt": "assistant", "observation": "tool"}
# Says that a row was split: the place of the turn that it ends with.
ASSISTANT_TURN = "assistant_turn"
# With several teachers, which of them scores the row.
TEACHER_COLUMN = "teacher"


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
            "`prompt` column (text, or a list of messages), a `messages` or a `conversations` column. Plain text that "
            "does not say where a prompt ends (`dataset_text_field`) can be trained on with `lmbda=0.0`, where nobody "
            "is to write an answer, and evaluated on with `eval_on_dataset=True`."
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
    return prompt if isinstance(prompt, str) else _read_messages(prompt)


def read_completion(example: Mapping[str, Any]) -> Prompt:
    """The completion of a dataset row: text, or the messages that follow its prompt.

    Raises:
        DataError: If there is none.
    """
    completion = find_completion(example)
    if not completion or not isinstance(completion, str | list):
        raise DataError(
            f"The dataset's completions are asked for (`lmbda` below 1, `eval_on_dataset`), and a row with the "
            f"columns {', '.join(example)} has none: its completion is {completion!r}. Give it a `completion` column, "
            "or `messages` that end with an assistant turn; or set `lmbda=1.0` or `seq_kd=True`, and "
            "`eval_on_dataset=False`."
        )
    return completion if isinstance(completion, str) else _read_messages(completion)


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


def has_turns(example: Mapping[str, Any]) -> bool:
    """Whether rows of this kind are conversations with answers, and not split yet."""
    if ASSISTANT_TURN in example:
        return False
    if "prompt" in example:
        return isinstance(example["prompt"], list) and "completion" in example
    return "messages" in example or "conversations" in example


def split_turns(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each assistant turn of a conversation that answers something, with all that stands before it.

    Of a prompt with a completion, they are the turns of the completion. A conversation that goes on after its last
    assistant turn is a row of its own, too: it is a prompt without a completion. What is no conversation, or was split
    already, stays one row.
    """
    column = next((name for name in ("prompt", "messages", "conversations") if name in example), None)
    given = [] if column != "prompt" else example["prompt"]
    messages = example.get("completion") if column == "prompt" else example.get(column or "")
    if not has_turns(example) or not isinstance(given, list) or not isinstance(messages, list) or not messages:
        return [{ASSISTANT_TURN: None, **example}]
    ends = [end for end, message in enumerate(messages) if _is_assistant_turn(message)]
    if not ends or ends[-1] < len(messages) - 1:
        ends.append(len(messages))
    rows = []
    for end in ends:
        if column == "prompt":
            parts = {"prompt": [*given, *messages[:end]], "completion": messages[end : end + 1] or None}
        else:
            parts = {column: messages[: end + 1]}
        rows.append({**example, **parts, ASSISTANT_TURN: len(given) + end})
    # Nothing stands before a greeting.
    return [row for row in rows if row[ASSISTANT_TURN]] or rows


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


def _is_assistant_turn(message: Any) -> bool:
    return isinstance(message, Mapping) and _as_message(message).get("role") == "assistant"


def _read_messages(messages: list[Any]) -> list[Any]:
    """Messages without nulls, which Arrow writes where a row lacks what another one has."""
    return [_read_message(message) if isinstance(message, Mapping) else message for message in messages]


def _read_message(message: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = {**remove_none_values(message)}
    calls = read.pop("tool_calls", None)
    if calls and not (isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)):
        raise DataError(f"`tool_calls` is {calls!r:.200}. It must be a list of calls, each with a `function`.")
    return read | {"tool_calls": [_read_call(call) for call in calls]} if calls else read


def _read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as a dictionary: some templates would quote JSON once more."""
    function = call.get("function", call)
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(arguments, str):
        return dict(call)
    try:
        read = json.loads(arguments)
    except json.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise DataError(
            f"The arguments of the tool call {dict(call)!r:.200} are {arguments!r:.200}, which is no JSON object. "
            'Give a dictionary, or JSON of one, for example {"city": "Paris"}.'
        )
    read_function = {**function, "arguments": read}
    return {**call, "function": read_function} if "function" in call else read_function


def read_tools(example: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that a dataset row offers to both models, as JSON schemas; `None` if it offers none.

    Raises:
        DataError: If they are no list.
    """
    tools = example.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) else remove_none_values({"tools": tools}).get("tools")
    except json.JSONDecodeError as error:
        raise DataError(f"`tools` is {tools!r}, which is not JSON ({error}). Give a list of JSON schemas.") from error
    if tools and not isinstance(tools, list):
        raise DataError(f"`tools` is {tools!r}, which is a {type(tools).__name__}. Give a list of JSON schemas.")
    return tools or None


def read_template_kwargs(example: Mapping[str, Any], column: str) -> dict[str, Any]:
    """The arguments that a dataset row has for the chat template of one side.

    Raises:
        DataError: If they are no dictionary.
    """
    arguments = example.get(column)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise DataError(f"`{column}` is {arguments!r:.200}. It must be a dictionary of template arguments.")
    return remove_none_values(arguments or {})


def is_conversational_prompt(prompt: Prompt) -> bool:
    """Whether the prompt is a list of messages."""
    return is_conversational({"prompt": prompt})
