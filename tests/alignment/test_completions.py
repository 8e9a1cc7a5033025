"""Completions that somebody else wrote, in the tokens with which a model would go on after its prompt."""

import pytest

from tests import chat_templates, real_tokenizers
from trl_xtok import TokenizerAligner
from trl_xtok.alignment.completions import answer_space, completion_ids
from trl_xtok.alignment.templates import end_of_turn_id, prompt_ids
from trl_xtok.errors import TemplateError


WITH_TEMPLATE = ["smollm2", "llama3", "qwen3", "gpt_oss", "tekken", "mistral1"]
PROMPT = [{"role": "user", "content": "Was heißt „Apfel“ auf Englisch?"}]
ANSWERS = ["Apple.", "An \n\n  `apple`, 你好 \U0001f34e, 2024!", "x"]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", WITH_TEMPLATE)
def test_an_answer_goes_on_where_the_prompt_ends_and_stops_as_the_template_does(name, answer):
    tokenizer = getattr(real_tokenizers, name)()
    ids = completion_ids(tokenizer, PROMPT, [{"role": "assistant", "content": answer}])
    assert ids[-1] == end_of_turn_id(tokenizer)
    assert ids[-1] not in ids[:-1]
    whole = tokenizer.apply_chat_template(
        [*PROMPT, {"role": "assistant", "content": answer}], tokenize=False, add_generation_prompt=False
    )
    begun = prompt_ids(tokenizer, PROMPT)
    # Whatever the template puts around the answer, nothing is lost and nothing comes twice.
    assert tokenizer.encode(whole, add_special_tokens=False)[: len(begun) + len(ids)] == [*begun, *ids]
    assert answer in tokenizer.decode(ids)


@pytest.mark.parametrize("name", [*WITH_TEMPLATE, "gemma3", "deepseek"])
def test_plain_text_is_followed_by_the_end_of_text(name):
    tokenizer = getattr(real_tokenizers, name)()
    prompt, completion = "The capital of France", " is Paris,\n\tnot Lyon: 1234567."
    ids = completion_ids(tokenizer, prompt, completion)
    assert ids[-1] == tokenizer.eos_token_id
    aligner = TokenizerAligner(tokenizer, tokenizer)
    assert sum(aligner.align(ids).student_bytes) == len(completion.encode())
    whole = tokenizer.encode(prompt + completion, add_special_tokens=False)
    assert tokenizer.encode(prompt, add_special_tokens=False) + ids[:-1] == whole


@pytest.mark.parametrize("name", ["smollm2", "mistral1", "gemma3"])
def test_a_completion_within_a_word_keeps_the_tokens_of_the_prompt(name):
    tokenizer = getattr(real_tokenizers, name)()
    ids = completion_ids(tokenizer, "The capital of Fran", "ce is Paris.")
    aligner = TokenizerAligner(tokenizer, tokenizer)
    assert sum(aligner.align(ids).student_bytes) == len("ce is Paris.")
    assert "".join(tokenizer.convert_ids_to_tokens(ids[:1])) not in (" ce", "▁ce", "Ġce")


@pytest.mark.parametrize("name", ["smollm2", "llama3"])
def test_a_stop_token_that_is_written_out_does_not_come_twice(name):
    tokenizer = getattr(real_tokenizers, name)()
    ids = completion_ids(tokenizer, "Hi", f" there{tokenizer.eos_token}")
    assert ids == completion_ids(tokenizer, "Hi", " there")


def test_text_and_messages_do_not_mix():
    tokenizer = real_tokenizers.smollm2()
    with pytest.raises(TemplateError, match="The prompt is text and its completion is messages"):
        completion_ids(tokenizer, "Hi", [{"role": "assistant", "content": "Hello"}])
    with pytest.raises(TemplateError, match="The prompt is a conversation and its completion is text"):
        completion_ids(tokenizer, PROMPT, "Hello")


def test_a_template_that_begins_a_prompt_otherwise_is_refused():
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think></think>{% endif %}"
    )
    with pytest.raises(TemplateError, match="does not go on from there"):
        completion_ids(
            real_tokenizers.smollm2(), PROMPT, [{"role": "assistant", "content": "Hi"}], chat_template=template
        )


@pytest.mark.parametrize(
    ("name", "template", "expected"),
    [
        ("mistral1", None, ("[/INST]", " ")),
        ("smollm2", None, ("", "")),
        ("llama3", None, ("", "")),
        # A reasoning block is no white space.
        ("qwen3", chat_templates.QWEN_THINKING, ("", "")),
        ("gemma3", None, ("", "")),
        ("smollm2", "{{ raise_exception('no') }}", ("", "")),
    ],
)
def test_the_space_that_a_template_writes_before_an_answer(name, template, expected):
    assert answer_space(getattr(real_tokenizers, name)(), chat_template=template) == expected


@pytest.mark.parametrize(
    ("name", "content", "start", "left"),
    [
        ("mistral1", " Hello there", " ", "Hello there"),
        ("mistral1", "  Hello", " ", " Hello"),
        ("mistral1", "Hello", " ", "Hello"),
        ("mistral1", " ", " ", ""),
        ("mistral1", "", " ", ""),
        ("smollm2", "\n\nHello", "\n", "\nHello"),
        ("smollm2", "\nHello", "\n\n", "\nHello"),
        ("llama3", "anything else", "any thing", "anything else"),
        ("llama3", "anything else", "anything els", "e"),
    ],
)
def test_ids_without_what_their_text_begins_with(name, content, start, left):
    aligner = TokenizerAligner(getattr(real_tokenizers, name)(), real_tokenizers.llama3())
    spelled = TokenizerAligner(real_tokenizers.llama3(), getattr(real_tokenizers, name)())
    written = [spelled.align(llama(text)).teacher_ids for text in (content, left)]
    assert aligner.without_start(written[0], start) == written[1]


def llama(text):
    return real_tokenizers.llama3().encode(text, add_special_tokens=False)
