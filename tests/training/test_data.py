"""Prompts: each model reads its own template and its own first token; plain text is read as it is."""

import copy

import pytest
from datasets import Dataset

from tests import chat_templates, real_tokenizers
from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import PROMPTS
from trl_xtok.errors import DataError, TemplateError
from trl_xtok.training.data import PromptCollator, left_pad, unpad
from trl_xtok.training.dataset_formats import read_prompt


CONVERSATION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is 2 + 2?"}]
SHORT = [{"role": "user", "content": "What is 2 + 2?"}]
THINKING = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def collator(student: str = "smollm2", teacher: str = "llama3", **settings) -> PromptCollator:
    return PromptCollator(getattr(real_tokenizers, student)(), getattr(real_tokenizers, teacher)(), **settings)


def seen(collator: PromptCollator, prompt) -> tuple[str, str]:
    """The prompt as both models read it."""
    student, teacher = collator.tokenize(prompt)
    return collator.student_tokenizer.decode(student), collator.teacher_tokenizer.decode(teacher)


def test_each_model_reads_the_conversation_in_its_own_template():
    student, teacher = seen(collator(), CONVERSATION)
    assert student == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert teacher == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2 + 2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_nothing_of_one_template_reaches_the_other_model():
    student, teacher = seen(collator(), CONVERSATION)
    assert "im_start" not in teacher
    assert "header" not in student


def test_a_system_prompt_that_a_template_adds_is_its_own_affair():
    """SmolLM2's template puts one in; the teacher's does not, and must not be shown the student's."""
    student, teacher = seen(collator(), SHORT)
    assert "named SmolLM" in student
    assert "SmolLM" not in teacher


def test_template_arguments_reach_their_own_template():
    student = copy.deepcopy(real_tokenizers.smollm2())
    student.chat_template = THINKING
    sides = PromptCollator(
        student,
        real_tokenizers.mistral1(),
        chat_template_kwargs={"enable_thinking": False},
        teacher_chat_template=THINKING,
        teacher_chat_template_kwargs={"enable_thinking": True},
    )
    student_text, teacher_text = seen(sides, SHORT)
    assert student_text.endswith("[assistant] <think></think>")
    assert teacher_text.endswith("[assistant] ")


def test_a_template_for_the_teacher_takes_the_place_of_its_own():
    _, teacher = seen(collator(teacher_chat_template=chat_templates.CHATML), CONVERSATION)
    assert teacher.endswith("<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("prompt", ["What is 2 + 2?", CONVERSATION], ids=["text", "conversation"])
@pytest.mark.parametrize(
    ("teacher", "template"),
    [
        pytest.param("gemma3", "{{ bos_token }}" + chat_templates.CHATML, id="tokenizer and template both add it"),
        pytest.param("gemma3", chat_templates.CHATML, id="tokenizer adds it"),
    ],
)
def test_the_first_token_stands_there_once(prompt, teacher, template):
    tokenizer = getattr(real_tokenizers, teacher)()
    _, ids = collator(teacher=teacher, teacher_chat_template=template).tokenize(prompt)
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_the_first_token_stands_there_once_for_the_student_too():
    student, teacher = collator("llama3", "mistral1").tokenize(CONVERSATION)
    assert student.count(real_tokenizers.llama3().bos_token_id) == 1
    assert teacher.count(real_tokenizers.mistral1().bos_token_id) == 1
    assert student[0] == real_tokenizers.llama3().bos_token_id


def test_plain_text_is_read_as_it_is():
    student, teacher = seen(collator(), "  Once upon\na time ")
    assert student == teacher == "  Once upon\na time "


def test_the_student_is_given_no_end_token():
    """Gemma would add nothing, a T5-like tokenizer an EOS, which would tell the teacher that the text is over."""
    student, teacher = collator("smollm2", "unigram").tokenize("Hello")
    assert real_tokenizers.smollm2().eos_token_id not in student
    assert real_tokenizers.unigram().eos_token_id not in teacher


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        pytest.param([*CONVERSATION, {"role": "assistant", "content": "4"}], CONVERSATION, id="ends with an answer"),
        pytest.param(CONVERSATION, CONVERSATION, id="ends with a question"),
        pytest.param(
            [*SHORT, {"role": "assistant", "content": "4"}, *SHORT, {"role": "assistant", "content": "four"}],
            [*SHORT, {"role": "assistant", "content": "4"}, *SHORT],
            id="several turns",
        ),
    ],
)
def test_messages_lose_their_last_assistant_turn_only(messages, expected):
    assert read_prompt({"messages": messages}) == expected


def test_a_prompt_column_comes_first():
    row = {"messages": SHORT, "prompt": "Hi", "completion": "ignored: the student writes it"}
    assert read_prompt(row) == "Hi"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"text": "Hi", "label": 1}, "columns text, label, and none holds a prompt", id="no column"),
        pytest.param({}, r"columns \(none\)", id="no columns"),
        pytest.param({"prompt": None}, "`prompt` is None", id="none"),
        pytest.param({"prompt": ""}, "`prompt` is ''", id="empty text"),
        pytest.param({"prompt": []}, r"`prompt` is \[\]", id="no messages"),
        pytest.param({"messages": None}, "`messages` is None", id="messages that are none"),
        pytest.param({"messages": SHORT[:0]}, r"`messages` is \[\]", id="empty messages"),
        pytest.param(
            {"messages": [{"role": "assistant", "content": "4"}]}, "prompt is empty", id="nothing but an answer"
        ),
        pytest.param({"prompt": 5}, "prompt is 5, which is a int", id="number"),
        pytest.param({"prompt": {"role": "user", "content": "Hi"}}, "which is a dict", id="a message without a list"),
    ],
)
def test_a_row_without_a_usable_prompt_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        read_prompt(row)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        pytest.param(["Hi", "there"], "Message 0 of the conversation is 'Hi'", id="list of text"),
        pytest.param([{"from": "human", "value": "Hi"}], "Message 0 .* must be a dict with a `role`", id="ShareGPT"),
        pytest.param(
            [{"role": "user", "content": None}], r"Message 0 \(role 'user'\) has the content None", id="none"
        ),
        pytest.param([{"role": "user", "content": 5}], "has the content 5", id="number"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image"}]}], "holds the part {'type': 'image'}", id="image"
        ),
        pytest.param([*SHORT, {"role": "assistant", "content": "4"}], "ends with an assistant turn", id="answered"),
    ],
)
def test_a_malformed_conversation_is_refused(prompt, message):
    with pytest.raises(TemplateError, match=message):
        collator().tokenize(prompt)


WITH_TOOLS = "{% for tool in tools or [] %}{{ tool.name }};{% endfor %}" + chat_templates.CHATML


@pytest.mark.parametrize("tools", [[{"name": "search"}], '[{"name": "search"}]'], ids=["list", "JSON"])
def test_tools_reach_both_templates(tools):
    student = copy.deepcopy(real_tokenizers.smollm2())
    student.chat_template = WITH_TOOLS
    sides = PromptCollator(student, real_tokenizers.llama3(), teacher_chat_template=WITH_TOOLS)
    student_ids, teacher_ids = sides.tokenize_row({"prompt": SHORT, "tools": tools})
    assert student.decode(student_ids).startswith("search;<|im_start|>user")
    assert real_tokenizers.llama3().decode(teacher_ids, skip_special_tokens=True).startswith("search;<|im_start|>user")


@pytest.mark.parametrize("tools", [None, [], "[]"])
def test_a_row_may_offer_no_tools(tools):
    assert collator().tokenize_row({"prompt": SHORT, "tools": tools}) == collator().tokenize(SHORT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"tools": "search"}, "`tools` is 'search', which is not JSON", id="no JSON"),
        pytest.param({"tools": {"name": "search"}}, "`tools` is .* which is a dict", id="no list"),
        pytest.param({"chat_template_kwargs": "fast"}, "`chat_template_kwargs` is 'fast'", id="arguments"),
        pytest.param({"teacher_chat_template_kwargs": [1]}, r"`teacher_chat_template_kwargs` is \[1\]", id="theirs"),
    ],
)
def test_what_a_row_asks_of_the_templates_in_vain_is_refused(row, message):
    with pytest.raises(DataError, match=message):
        collator().tokenize_row({"prompt": SHORT, **row})


def test_a_role_that_a_template_does_not_know_is_refused_with_what_it_says():
    strict = "{% for message in messages %}{{ raise_exception('Unknown role ' + message['role']) }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"roles \['critic'\].*Unknown role critic"):
        collator(teacher_chat_template=strict).tokenize([{"role": "critic", "content": "Hi"}])


def test_a_role_that_a_template_leaves_out_is_refused():
    only_users = "{% for message in messages if message['role'] == 'user' %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"leaves out message 0 \(role 'system', 'Be short.'\)"):
        collator(teacher_chat_template=only_users).tokenize(CONVERSATION)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_prompt_that_leaves_no_room_is_refused_with_its_length(side):
    prompt = "word " * 50
    assert collator(**{f"{side}_limit": 52}).tokenize(prompt)
    with pytest.raises(DataError, match=rf"A prompt has \d+ {side} tokens, but only 40 leave room.*begins 'word word"):
        collator(**{f"{side}_limit": 40}).tokenize(prompt)


def test_a_batch_is_padded_on_the_left_and_comes_back_as_it_was():
    rows = [{"prompt": "Hi"}, {"prompt": "A longer prompt, in 12 tokens or so"}, {"prompt": "你好 🙂"}]
    both = collator("smollm2", "mistral1")
    batch = both(rows)
    student, teacher = zip(*(both.tokenize(row["prompt"]) for row in rows), strict=True)
    assert list(unpad(batch["prompts"], batch["prompt_attention_mask"])) == list(student)
    assert list(unpad(batch["teacher_prompts"], batch["teacher_prompt_attention_mask"])) == list(teacher)
    assert batch["prompt_attention_mask"][:, -1].all()


def test_padding_is_told_from_a_prompt_that_holds_the_pad_token():
    ids, mask = left_pad([[7], [0, 0, 5]], 0)
    assert ids.tolist() == [[0, 0, 7], [0, 0, 5]]
    assert list(unpad(ids, mask)) == [[7], [0, 0, 5]]


def test_each_model_of_a_run_reads_its_own_template(make_trainer):
    rows = [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "x"}]}
        for prompt in PROMPTS
    ]
    trainer = make_trainer(arguments=shared_tokenizers() | {"train_dataset": Dataset.from_list(rows)})
    seen = []
    score = trainer.teacher.token_logps

    def token_logps(prompts, completions):
        seen.extend(trainer.data_collator.teacher_tokenizer.decode(prompt) for prompt in prompts)
        return score(prompts, completions)

    trainer.teacher.token_logps = token_logps
    trainer.train()
    assert len(seen) == 2
    for text in seen:
        assert text.replace("<s> ", "<s>").startswith("<s>[INST] ")
        assert text.endswith(" [/INST]")
        assert text.count("<s>") == 1
        assert "im_start" not in text
