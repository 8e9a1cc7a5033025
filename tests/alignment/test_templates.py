"""Prompts in each model's own chat template, on real tokenizers.

The templates are short ones of our own that behave as those of the families they are named after.
"""

import subprocess
import sys
from copy import deepcopy

import pytest
from tokenizers.processors import TemplateProcessing

from tests import chat_templates, real_tokenizers
from tests.chat_templates import (
    DEEPSEEK,
    GEMMA,
    HELLO,
    LLAMA_DATED,
    NEXT_HEADER,
    PLAIN_WORDS,
    QWEN_THINKING,
    TURNS,
    WITH_SYSTEM,
)
from trl_xtok.alignment.templates import end_of_turn_id, load_chat_template, prompt_ids, stop_ids


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


def test_message_that_the_template_reads_as_a_command_is_kept():
    command = "{{ messages[-1].content }}{% if messages[0].content == '/no_think' %}<think></think>{% endif %}"
    messages = [{"role": "system", "content": "/no_think"}, *HELLO]
    assert prompt_text(real_tokenizers.qwen3(), messages, chat_template=command) == "Hello<think></think>"


def test_template_is_read_from_a_file_or_its_folder(tmp_path):
    file = tmp_path / "chat_template.jinja"
    file.write_text(chat_templates.CHATML)
    assert load_chat_template(file) == load_chat_template(str(tmp_path)) == chat_templates.CHATML


def test_neither_torch_nor_trl_is_imported():
    code = (
        "import sys; from tests.real_tokenizers import smollm2; from trl_xtok.alignment.templates import *;"
        "prompt_ids(smollm2(), [{'role': 'user', 'content': 'Hi'}]); end_of_turn_id(smollm2());"
        "assert not {'torch', 'trl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
