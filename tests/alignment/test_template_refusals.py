"""Prompts that are refused, on real tokenizers."""

import pytest

from tests import real_tokenizers
from tests.chat_templates import GEMMA, HELLO, TURNS, WITH_SYSTEM
from trl_xtok.alignment.templates import load_chat_template, prompt_ids
from trl_xtok.errors import DataError, TemplateError


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        pytest.param([], "conversation is empty", id="empty"),
        pytest.param([{"content": "Hello"}], "Message 0 .* is {'content': 'Hello'}", id="no role"),
        pytest.param(["Hello"], "Message 0 .* is 'Hello'", id="a string for a message"),
        pytest.param([{"role": "user"}], "role 'user'.* has the content None", id="no content"),
        pytest.param([{"role": "user", "content": 3}], "has the content 3", id="a number for content"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "part {'type': 'image'", id="an image"
        ),
        pytest.param(TURNS[:2], "2 messages ends with an assistant turn.* Strip", id="an assistant turn at the end"),
    ],
)
def test_malformed_conversation_is_refused(messages, found):
    with pytest.raises(TemplateError, match=found):
        prompt_ids(real_tokenizers.smollm2(), messages)


def test_unknown_role_is_refused_with_the_templates_own_words():
    with pytest.raises(TemplateError, match=r"roles \['system', 'user'\].* There is no system role"):
        prompt_ids(real_tokenizers.gemma3(), WITH_SYSTEM, chat_template=GEMMA)


def test_parts_are_refused_by_a_template_that_cannot_read_them():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    with pytest.raises(TemplateError, match="can only concatenate str"):
        prompt_ids(real_tokenizers.smollm2(), parts)


def test_message_that_the_template_drops_is_refused():
    users_only = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateError, match=r"leaves out message 0 \(role 'system', 'Be brief.'\)"):
        prompt_ids(real_tokenizers.smollm2(), WITH_SYSTEM, chat_template=users_only)


def test_conversation_for_a_model_without_template_is_refused():
    with pytest.raises(TemplateError, match=r"gemma3.* has no chat template.*`teacher_chat_template_path`"):
        prompt_ids(real_tokenizers.gemma3(), HELLO)


def test_setting_of_the_prompt_among_the_template_variables_is_refused():
    with pytest.raises(TemplateError, match="add_generation_prompt"):
        prompt_ids(real_tokenizers.smollm2(), HELLO, chat_template_kwargs={"add_generation_prompt": False})


def test_empty_prompt_is_refused_unless_there_is_a_bos():
    gemma = real_tokenizers.gemma3()
    assert prompt_ids(gemma, "") == [gemma.bos_token_id]
    with pytest.raises(DataError, match="prompt '' has no tokens"):
        prompt_ids(real_tokenizers.smollm2(), "")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param(None, "There is no chat template at", id="missing"),
        pytest.param(b" \n", "is empty", id="empty"),
        pytest.param(b"\xff\xfe", "is not UTF-8", id="not text"),
    ],
)
def test_unreadable_template_file_is_refused(tmp_path, content, found):
    file = tmp_path / "teacher.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TemplateError, match=found):
        load_chat_template(file)
