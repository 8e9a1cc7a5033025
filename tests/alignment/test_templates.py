"""Prompts in each model's own chat template, on real tokenizers.

The templates are short ones of our own that behave as those of the families they are named after.
"""

import subprocess
import sys
from copy import deepcopy

import pytest
from tokenizers.processors import TemplateProcessing

from tests import chat_templates, real_tokenizers
from trl_xtok.alignment.templates import end_of_turn_id, load_chat_template, prompt_ids, stop_ids
from trl_xtok.errors import DataError, TemplateError


# A base of Gemma's kind: BOS in the template, white space trimmed, no system role, strict alternation.
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('There is no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Take turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Of Qwen3's kind: a reasoning block around the last answer, and an empty one in the prompt on request.
QWEN_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content | default('') }}\n</think>\n\n"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Of Llama 3's kind: a system header with a date even if nobody wrote one, tools as JSON.
LLAMA_DATED = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n"
    "Today: {{ date_string | default('26 Jul 2024') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# Of DeepSeek's kind: markers outside ASCII, the end of a turn is the end of the text.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<｜Assistant｜>{{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
# Of GLM's kind: nothing closes a turn but the header of the next one.
NEXT_HEADER = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% endif %}"
)
PLAIN_WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

HELLO = [{"role": "user", "content": "Hello"}]
WITH_SYSTEM = [{"role": "system", "content": "Be brief."}, *HELLO]
TURNS = [*HELLO, {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "  Bye  "}]


def with_bos(tokenizer):
    """A copy that puts BOS before every text, as the vendor's own file does."""
    copy = deepcopy(tokenizer)
    special = [(copy.bos_token, copy.bos_token_id)]
    copy.backend_tokenizer.post_processor = TemplateProcessing(f"{copy.bos_token} $A", special_tokens=special)
    return copy


def prompt_text(tokenizer, prompt, **options):
    return tokenizer.decode(prompt_ids(tokenizer, prompt, **options), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("load", "template", "messages", "text"),
    [
        pytest.param(
            real_tokenizers.smollm2,
            None,
            HELLO,
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
            id="a default system prompt",
        ),
        pytest.param(
            real_tokenizers.gemma3,
            GEMMA,
            TURNS,
            "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi!<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
            id="BOS from the template, content trimmed, three turns",
        ),
        pytest.param(
            real_tokenizers.llama3,
            LLAMA_DATED,
            WITH_SYSTEM,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            id="a date header",
        ),
        pytest.param(
            real_tokenizers.deepseek,
            DEEPSEEK,
            WITH_SYSTEM,
            "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hello<｜Assistant｜>",
            id="markers outside ASCII",
        ),
    ],
)
def test_conversation_is_shown_in_the_models_own_template(load, template, messages, text):
    tokenizer = load()
    assert prompt_text(tokenizer, messages, chat_template=template) == text


def test_template_variables_reach_the_template():
    tokenizer = real_tokenizers.qwen3()
    thinking = prompt_text(tokenizer, HELLO, chat_template=QWEN_THINKING)
    silent = prompt_text(
        tokenizer, HELLO, chat_template=QWEN_THINKING, chat_template_kwargs={"enable_thinking": False}
    )
    assert thinking == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert silent == thinking + "<think>\n\n</think>\n\n"


def test_tools_reach_the_template():
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: The first.
            b: The second.
        """
        return a + b

    text = prompt_text(real_tokenizers.llama3(), HELLO, chat_template=LLAMA_DATED, tools=[add])
    assert '"name": "add"' in text


@pytest.mark.parametrize("text", ["Hello", "<bos>Hello"], ids=["left out of the text", "spelled in the text"])
def test_plain_text_starts_with_one_bos(text):
    gemma = real_tokenizers.gemma3()
    assert prompt_ids(gemma, text) == [gemma.bos_token_id, *gemma.encode("Hello", add_special_tokens=False)]


@pytest.mark.parametrize("load", [real_tokenizers.mistral1, real_tokenizers.llama3])
@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ bos_token }}" + PLAIN_WORDS, id="by the template"),
        pytest.param(PLAIN_WORDS, id="by the tokenizer"),
        pytest.param("\n{{ bos_token }}" + PLAIN_WORDS, id="by a template that starts with a line break"),
    ],
)
def test_conversation_has_one_bos(template, load):
    tokenizer = with_bos(load())
    ids = prompt_ids(tokenizer, HELLO, chat_template=template)
    assert ids.count(tokenizer.bos_token_id) == 1


def test_template_may_write_a_bos_that_the_tokenizer_does_not():
    tokenizer = real_tokenizers.llama3()
    assert tokenizer.encode("Hello")[0] != tokenizer.bos_token_id
    ids = prompt_ids(tokenizer, HELLO, chat_template=LLAMA_DATED)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_nothing_is_added_where_the_tokenizer_adds_nothing():
    tokenizer = real_tokenizers.smollm2()
    assert tokenizer.bos_token_id is not None
    assert prompt_ids(tokenizer, "Hello there") == tokenizer.encode("Hello there", add_special_tokens=False)


def test_separator_that_the_tokenizer_appends_is_left_out():
    bert = real_tokenizers.wordpiece()
    assert bert.convert_ids_to_tokens(bert.encode("hello")) == ["[CLS]", "hello", "[SEP]"]
    assert bert.convert_ids_to_tokens(prompt_ids(bert, "hello")) == ["[CLS]", "hello"]


def test_long_prompt_is_neither_cut_nor_remarked_upon(caplog):
    bert = deepcopy(real_tokenizers.wordpiece())
    bert.model_max_length = 16
    assert len(prompt_ids(bert, "hello " * 1000)) == 1001
    assert not caplog.records


@pytest.mark.parametrize(
    ("load", "template", "token"),
    [
        pytest.param(real_tokenizers.smollm2, None, "<|im_end|>", id="ChatML with a line break after the token"),
        pytest.param(real_tokenizers.gemma3, GEMMA, "<end_of_turn>", id="Gemma, whose eos_token is another"),
        pytest.param(real_tokenizers.qwen3, QWEN_THINKING, "<|im_end|>", id="reasoning block before the content"),
        pytest.param(real_tokenizers.qwen3_base, None, "<|im_end|>", id="base model, whose eos_token is another"),
        pytest.param(real_tokenizers.llama3, LLAMA_DATED, "<|eot_id|>", id="Llama 3"),
        pytest.param(real_tokenizers.mistral1, None, "</s>", id="Mistral"),
        pytest.param(real_tokenizers.deepseek, DEEPSEEK, "<｜end▁of▁sentence｜>", id="DeepSeek"),
        pytest.param(real_tokenizers.gpt_oss, None, "<|return|>", id="harmony, where only the last turn ends so"),
        pytest.param(
            real_tokenizers.llama3, NEXT_HEADER, "<|start_header_id|>", id="only the next header ends a turn"
        ),
        pytest.param(real_tokenizers.llama3, PLAIN_WORDS, "<|eot_id|>", id="words end a turn: eos_token"),
        pytest.param(real_tokenizers.gemma3, None, "<eos>", id="no template: eos_token"),
        pytest.param(
            real_tokenizers.smollm2, "{{ raise_exception('no') }}", "<|im_end|>", id="template refuses: eos_token"
        ),
        pytest.param(real_tokenizers.smollm2, "{% if %}", "<|im_end|>", id="broken template: eos_token"),
        pytest.param(
            real_tokenizers.gemma3,
            "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<end_of_turn>{% endfor %}",
            "<end_of_turn>",
            id="template that knows content as parts only",
        ),
        pytest.param(
            real_tokenizers.gemma3,
            "{% for m in messages %}{{ m.content }}{% if not loop.last %}<end_of_turn>{% endif %}{% endfor %}",
            "<end_of_turn>",
            id="last turn left open",
        ),
    ],
)
def test_end_of_turn(load, template, token):
    tokenizer = load()
    end = end_of_turn_id(tokenizer, chat_template=template)
    assert tokenizer.convert_ids_to_tokens(end) == token
    assert stop_ids(tokenizer, chat_template=template) == {end, tokenizer.eos_token_id}


def test_tokenizer_without_any_end_has_no_stop_ids():
    tokenizer = deepcopy(real_tokenizers.smollm2())
    tokenizer.chat_template = tokenizer.eos_token = None
    assert end_of_turn_id(tokenizer) is None
    assert stop_ids(tokenizer) == frozenset()


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


def test_message_that_the_template_reads_as_a_command_is_kept():
    command = "{{ messages[-1].content }}{% if messages[0].content == '/no_think' %}<think></think>{% endif %}"
    messages = [{"role": "system", "content": "/no_think"}, *HELLO]
    assert prompt_text(real_tokenizers.qwen3(), messages, chat_template=command) == "Hello<think></think>"


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


def test_template_is_read_from_a_file_or_its_folder(tmp_path):
    file = tmp_path / "chat_template.jinja"
    file.write_text(chat_templates.CHATML)
    assert load_chat_template(file) == load_chat_template(str(tmp_path)) == chat_templates.CHATML


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


def test_neither_torch_nor_trl_is_imported():
    code = (
        "import sys; from tests.real_tokenizers import smollm2; from trl_xtok.alignment.templates import *;"
        "prompt_ids(smollm2(), [{'role': 'user', 'content': 'Hi'}]); end_of_turn_id(smollm2());"
        "assert not {'torch', 'trl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
