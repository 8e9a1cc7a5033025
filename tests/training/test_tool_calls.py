"""Tools, tool calls and tool results, in templates that vendors ship; and thinking, which each side does as asked."""

import copy
import json
from functools import cache

import pytest
from datasets import Dataset

from tests import real_tokenizers
from tests.chat_templates import vendors
from trl_xtok.errors import DataError, TemplateError
from trl_xtok.training.data import PromptCollator
from trl_xtok.training.dataset_formats import read_prompt, split_turns


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASKED = [{"role": "user", "content": "How is the weather in Paris?"}]


def call(arguments) -> dict:
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": arguments}}],
    }


CALL = call({"city": "Paris"})
RESULT = {"role": "tool", "name": "get_weather", "content": "sunny, 21 degrees"}
ANSWER = {"role": "assistant", "content": "It is warm there."}
CONVERSATION = [*ASKED, CALL, RESULT, ANSWER]


def with_template(tokenizer, name):
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = vendors(name)
    return clone


@cache
def qwen3():
    return with_template(real_tokenizers.qwen3(), "qwen3")


@cache
def llama3():
    return with_template(real_tokenizers.llama3(), "llama3_1")


@cache
def qwen2():
    return with_template(real_tokenizers.qwen3_base(), "qwen2_5")


def seen(collator, row) -> tuple[str, str]:
    student, teacher = collator.tokenize_row(row)
    return collator.student_tokenizer.decode(student), collator.teacher_tokenizer.decode(teacher)


def test_each_side_renders_tools_calls_and_results_in_its_own_template():
    student, teacher = seen(PromptCollator(qwen3(), llama3()), {"messages": CONVERSATION, "tools": TOOLS})
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in student
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>' in student
    assert "<tool_response>\nsunny, 21 degrees\n</tool_response>" in student
    assert json.dumps(TOOLS[0], indent=4) in teacher
    assert '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>' in teacher
    assert 'ipython<|end_header_id|>\n\n"sunny, 21 degrees"<|eot_id|>' in teacher
    assert "tool_call>" not in teacher
    assert "warm" not in student + teacher


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*ASKED, call('{"city": "Paris"}'), RESULT, ANSWER], "tools": json.dumps(TOOLS)},
        {"messages": [*ASKED, {**CALL, "content": None}, RESULT, ANSWER], "tools": TOOLS},
        {"prompt": [*ASKED, CALL, RESULT], "completion": [ANSWER], "tools": TOOLS},
    ],
    ids=["JSON", "null content", "prompt and completion"],
)
def test_other_ways_to_write_the_same_row(row):
    collator = PromptCollator(qwen3(), llama3())
    assert collator.tokenize_row(row) == collator.tokenize_row({"messages": CONVERSATION, "tools": TOOLS})


def test_what_arrow_fills_in_is_not_shown_to_anybody():
    """A column has one type, so each message, call and schema gets nulls for what others have."""
    other = {"messages": [*ASKED, call({"unit": "C"}), RESULT, ANSWER], "tools": copy.deepcopy(TOOLS)}
    other["tools"][0]["function"]["parameters"]["properties"] = {"unit": {"type": "string", "enum": ["C"]}}
    row = {"messages": CONVERSATION, "tools": TOOLS}
    stored = Dataset.from_list([row, other])[0]
    assert stored["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris", "unit": None}
    assert stored["messages"][0]["tool_calls"] is None
    collator = PromptCollator(qwen3(), llama3())
    assert collator.tokenize_row(stored) == collator.tokenize_row(row)


def test_what_a_tool_wrote_is_never_trained_on():
    tokenizer = qwen3()
    collator = PromptCollator(tokenizer, qwen2(), chat_template_kwargs={"enable_thinking": False})
    rows = split_turns({"messages": CONVERSATION, "tools": TOOLS})
    trained = [tokenizer.decode(collator.completion(row, collator.tokenize_row(row)[0])) for row in rows]
    assert trained == [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
        "It is warm there.<|im_end|>",
    ]
    assert "sunny" in seen(collator, rows[1])[0]


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (
            llama3,
            {},
            r"as '<think>.*\"arguments\": .*, the teacher's as '{\"name\": \"get_weather\", \"parameters\": ",
        ),
        # Its empty reasoning block stands in the prompt only on request.
        (qwen2, {}, r"as '<think>.*the teacher's as '<tool_call>.*Give templates or template arguments"),
    ],
)
def test_calls_that_the_teacher_would_write_in_another_way_are_refused(teacher, options, message):
    collator = PromptCollator(qwen3(), teacher(), **options)
    row = {"messages": CONVERSATION[:2], "tools": TOOLS}
    prompt, _ = collator.tokenize_row(row)
    with pytest.raises(TemplateError, match=message):
        collator.completion(row, prompt)


def test_calls_that_a_template_leaves_out_of_the_prompt_are_refused():
    collator = PromptCollator(qwen3(), real_tokenizers.mistral1())
    with pytest.raises(TemplateError, match=r"mistral1.* leaves out the tool calls of message 1 \(role 'assistant'"):
        collator.tokenize_row({"messages": [*ASKED, {**CALL, "content": "Let me see."}, RESULT, ANSWER]})


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("get_weather()", r"`tool_calls` is 'get_weather\(\)'. It must be a list of calls"),
        (["get_weather"], r"`tool_calls` is \['get_weather'\]"),
        ([{"function": {"name": "f", "arguments": "Paris"}}], "are 'Paris', which is no JSON object"),
        ([{"name": "f", "arguments": "[1]"}], r"are '\[1\]', which is no JSON object"),
    ],
)
def test_malformed_calls_are_refused(calls, message):
    with pytest.raises(DataError, match=message):
        read_prompt({"prompt": [*ASKED, {"role": "assistant", "tool_calls": calls}, RESULT]})


SILENT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
THINKING = "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("options", "row", "student", "teacher"),
    [
        ({}, {}, THINKING, THINKING),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {}, SILENT, THINKING),
        ({"teacher_chat_template_kwargs": {"enable_thinking": False}}, {}, THINKING, SILENT),
        ({}, {"chat_template_kwargs": {"enable_thinking": False}}, SILENT, THINKING),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {
                "chat_template_kwargs": {"enable_thinking": True},
                "teacher_chat_template_kwargs": {"enable_thinking": False},
            },
            THINKING,
            SILENT,
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            {"chat_template_kwargs": {"enable_thinking": None}, "teacher_chat_template_kwargs": None},
            SILENT,
            THINKING,
        ),
    ],
    ids=["default", "student", "teacher", "row", "the row comes first", "nulls say nothing"],
)
def test_each_side_thinks_as_asked(options, row, student, teacher):
    ends = seen(PromptCollator(qwen3(), qwen3(), **options), {"prompt": ASKED, **row})
    assert [end.partition("?<|im_end|>\n")[2] for end in ends] == [student, teacher]
