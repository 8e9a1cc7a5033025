"""Bad input: what cannot work is refused before training, with what was found, why it cannot go on, and what to do."""

from typing import ClassVar

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from peft import AdaLoraConfig, LoraConfig, PolyConfig, PromptTuningConfig, TaskType, get_peft_model
from trl import SFTConfig

from tests import real_tokenizers
from tests.training.bad_input import (
    CONVERSATIONS,
    builder,
    forbid_weights,
    without_special_tokens,
    without_template,
)
from tests.training.tiny_models import prompt_dataset, save, tiny_args, tiny_model
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.errors import ConfigError, DataError, ModelError, TemplateError, TokenizerError, XTokError
from trl_xtok.training import loading, setup
from trl_xtok.training.data import PromptCollator
from trl_xtok.training.dataset_checks import prepare_datasets


@pytest.fixture
def build(tmp_path, student_path, teacher_path):
    return builder(tmp_path, student_path, teacher_path)


@pytest.fixture
def no_weights(monkeypatch):
    forbid_weights(monkeypatch)


def test_every_error_is_of_the_package_and_of_the_standard_library():
    for error in (ConfigError, DataError, ModelError, TemplateError, TokenizerError):
        assert issubclass(error, XTokError)
        assert issubclass(error, ValueError)


@pytest.mark.usefixtures("no_weights")
class TestDatasets:
    def test_a_dataset_is_needed(self, build):
        with pytest.raises(DataError, match="`train_dataset` is required"):
            build(train_dataset=None)

    @pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
    def test_an_empty_dataset_is_refused(self, build, name):
        with pytest.raises(DataError, match=f"`{name}` is empty.*Check its split and filters"):
            build(**{name: prompt_dataset().select([])})

    def test_an_empty_stream_is_refused(self, build):
        with pytest.raises(DataError, match="`train_dataset` is empty"):
            build(train_dataset=IterableDataset.from_generator(lambda: iter(())))

    def test_all_splits_together_are_refused(self, build):
        splits = DatasetDict({"train": prompt_dataset(), "test": prompt_dataset()})
        with pytest.raises(DataError, match=r"DatasetDict with the splits \['train', 'test'\]; pass one"):
            build(train_dataset=splits)

    def test_a_list_is_refused(self, build):
        with pytest.raises(DataError, match=r"`train_dataset` is a list.*`Dataset.from_list`"):
            build(train_dataset=[{"prompt": "Hi"}])

    def test_a_dataset_without_prompts_is_refused(self, build):
        with pytest.raises(DataError, match=r"the columns text, label, and none holds a prompt.*`prompt` column"):
            build(train_dataset=Dataset.from_dict({"text": ["Hi"], "label": [0]}))

    def test_a_named_evaluation_dataset_without_prompts_is_refused(self, build):
        with pytest.raises(DataError, match="none holds a prompt"):
            build(eval_dataset={"good": prompt_dataset(), "bad": Dataset.from_dict({"text": ["Hi"]})})

    @pytest.mark.parametrize("prompt", [None, ""])
    def test_a_row_without_a_prompt_is_found_before_training(self, build, prompt):
        with pytest.raises(DataError, match=rf"Row 2 of `train_dataset`: The prompt is empty: `prompt` is {prompt!r}"):
            build(train_dataset=prompt_dataset(["Hi", "there", prompt, "again"]))

    def test_a_column_of_numbers_is_refused(self, build):
        with pytest.raises(DataError, match="The prompt is 5, which is a int"):
            build(train_dataset=Dataset.from_dict({"prompt": [5, 6]}))

    def test_a_column_of_lists_of_text_is_refused(self, build):
        with pytest.raises(TemplateError, match=r"Message 0 of the conversation is 'Hi'.*a `role` and a `content`"):
            build(train_dataset=Dataset.from_dict({"prompt": [["Hi", "there"]]}))

    def test_the_longest_prompts_are_found_before_training(self, build):
        rows = ["Hi"] * 60 + ["word " * 200] + ["Hi"] * 60
        with pytest.raises(DataError, match=r"Row 60 of `train_dataset`: A prompt has 20\d student tokens, but only"):
            build(train_dataset=prompt_dataset(rows))

    def test_a_prompt_too_long_for_the_teacher_is_found_before_training(self, build, tmp_path):
        model = tiny_model("llama", 32000, max_position_embeddings=32)
        small = save(model, real_tokenizers.mistral1(), tmp_path / "small")
        with pytest.raises(DataError, match=r"Row 1 of `eval_dataset`: A prompt has \d+ teacher tokens, but only 26"):
            build(
                teacher=small,
                train_dataset=prompt_dataset(["Hi"]),
                eval_dataset=prompt_dataset(["Hi", "word " * 40]),
            )

    @pytest.mark.parametrize(
        ("side", "argument"),
        [("processing_class", "chat_template_path"), ("teacher_processing_class", "teacher_chat_template_path")],
    )
    def test_a_conversation_needs_two_templates(self, build, side, argument):
        tokenizer = {"processing_class": real_tokenizers.smollm2, "teacher_processing_class": real_tokenizers.mistral1}
        with pytest.raises(TemplateError, match=f"conversational, but the .*no chat template.*Set `{argument}`"):
            build(train_dataset=Dataset.from_list(CONVERSATIONS), **{side: without_template(tokenizer[side]())})

    def test_a_role_that_the_teacher_does_not_know_is_refused(self, build, tmp_path):
        file = tmp_path / "strict.jinja"
        file.write_text(
            "{% for message in messages %}{% if message['role'] not in ('user', 'assistant') %}"
            "{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}"
            "{{ message['content'] }}{% endfor %}"
        )
        rows = [{"prompt": [{"role": "system", "content": "Be short."}, *CONVERSATIONS[0]["prompt"]]}]
        with pytest.raises(TemplateError, match=r"roles \['system', 'user'\].*Only user and assistant roles"):
            build(train_dataset=Dataset.from_list(rows), teacher_chat_template_path=str(file))

    @pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
    def test_sampling_by_length_needs_lengths(self, build, strategy):
        with pytest.raises(ConfigError, match=r"needs the lengths.*`train_dataset` has the columns prompt and none"):
            build(train_sampling_strategy=strategy)

    def test_sorted_evaluation_needs_lengths_too(self, build):
        """Else the first evaluation would fail."""
        dataset = prompt_dataset(["Hi", "Why?"]).add_column("length", [2, 4])
        with pytest.raises(ConfigError, match="needs the lengths of the rows, but `eval_dataset`"):
            build(train_dataset=dataset, eval_dataset=prompt_dataset(), train_sampling_strategy="group_by_length")

    def test_a_stream_cannot_be_sorted(self, build):
        with pytest.raises(ConfigError, match="has no effect on `train_dataset`, which is a stream"):
            build(train_dataset=prompt_dataset().to_iterable_dataset(), train_sampling_strategy="group_by_length")

    def test_a_custom_collator_may_read_any_column(self, build, monkeypatch):
        """The check stops at an empty dataset; what is in the rows is the collator's affair."""
        reached = []
        monkeypatch.setattr(
            CrossTokenizerGKDTrainer.__mro__[1], "__init__", lambda *a, **k: reached.append(1) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            build(train_dataset=Dataset.from_dict({"text": ["Hi"]}), data_collator=list)
        assert reached


def test_images_are_refused(build):
    rows = {"prompt": ["Hi"], "image": [b"..."]}
    with pytest.raises(DataError, match="only text can be aligned"):
        build(train_dataset=Dataset.from_dict(rows))


def test_a_template_file_serves_a_student_without_one(build, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}<{{ message['content'] }}>{% endfor %}")
    trainer = build(
        train_dataset=Dataset.from_list(CONVERSATIONS),
        processing_class=without_template(real_tokenizers.smollm2()),
        chat_template_path=str(file),
    )
    student, _ = trainer.data_collator.tokenize(CONVERSATIONS[0]["prompt"])
    assert trainer.processing_class.decode(student) == "<Hi>"


def test_a_template_file_of_the_student_is_not_taken_for_the_teachers(build, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}<{{ message['content'] }}>{% endfor %}")
    tokenizer = without_template(real_tokenizers.smollm2())
    with pytest.raises(ConfigError, match=r"`chat_template_path=.*the very object.*a second time"):
        build(
            train_dataset=Dataset.from_list(CONVERSATIONS),
            processing_class=tokenizer,
            teacher_processing_class=tokenizer,
            chat_template_path=str(file),
        )


def test_a_template_file_serves_a_teacher_without_one(build, tmp_path):
    """Its end of turn is the one that this template writes."""
    file = tmp_path / "template.jinja"
    file.write_text("{% for message in messages %}[INST]{{ message['content'] }}<unk>{% endfor %}")
    trainer = build(
        train_dataset=Dataset.from_list(CONVERSATIONS),
        teacher_processing_class=without_template(real_tokenizers.mistral1()),
        teacher_chat_template_path=str(file),
    )
    _, teacher = trainer.data_collator.tokenize(CONVERSATIONS[0]["prompt"])
    assert trainer.data_collator.teacher_tokenizer.decode(teacher).endswith("[INST]Hi<unk>")
    assert trainer.aligner.teacher_end_id == real_tokenizers.mistral1().unk_token_id


def test_template_arguments_of_the_config_reach_the_prompts():
    args = CrossTokenizerGKDConfig(
        chat_template_kwargs='{"enable_thinking": false}', teacher_chat_template_kwargs={"date": "today"}
    )
    config = tiny_model("llama", 300).config
    made = setup.make_collator(real_tokenizers.smollm2(), real_tokenizers.mistral1(), config, config, args)
    assert made.chat_template_kwargs == {"enable_thinking": False}
    assert made.teacher_chat_template_kwargs == {"date": "today"}


def test_a_prompt_leaves_room_for_a_whole_completion():
    args = CrossTokenizerGKDConfig(max_new_tokens=100, max_length=512)
    config = tiny_model("llama", 300, max_position_embeddings=256).config
    made = setup.make_collator(real_tokenizers.smollm2(), real_tokenizers.mistral1(), config, config, args)
    assert (made.student_limit, made.teacher_limit) == (156, 156)
    args.max_length = 128
    made = setup.make_collator(real_tokenizers.smollm2(), real_tokenizers.mistral1(), config, config, args)
    assert (made.student_limit, made.teacher_limit) == (28, 156)


@pytest.mark.usefixtures("no_weights")
class TestArguments:
    @pytest.mark.parametrize("name", ["preprocess_logits_for_metrics", "formatting_func"])
    def test_functions_that_would_never_be_called_are_refused(self, build, name):
        with pytest.raises(ConfigError, match=f"`{name}=.*is not supported by CrossTokenizerGKDTrainer"):
            build(**{name: print})

    def test_arguments_of_another_trainer_are_refused(self, build, tmp_path):
        with pytest.raises(ConfigError, match=r"`args` is a SFTConfig.*Pass a `CrossTokenizerGKDConfig`"):
            build(args=SFTConfig(str(tmp_path), use_cpu=True, bf16=False))

    def test_an_adapter_given_as_a_dictionary_is_refused(self, build):
        with pytest.raises(ConfigError, match="`peft_config` is a dict, but must be a `PeftConfig`"):
            build(peft_config={"r": 8})

    def test_virtual_tokens_are_refused(self, build):
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
        with pytest.raises(ConfigError, match="PromptTuningConfig, which puts virtual tokens before the prompt"):
            build(peft_config=config)

    def test_virtual_tokens_of_a_loaded_adapter_are_refused(self, build):
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)
        model = get_peft_model(tiny_model("llama", 49152), config)
        with pytest.raises(ConfigError, match="PromptTuningConfig, which puts virtual tokens before the prompt"):
            build(model=model)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (AdaLoraConfig(task_type="CAUSAL_LM", total_step=10), r"AdaLoraConfig \(ADALORA\)"),
        (PolyConfig(task_type="CAUSAL_LM"), r"PolyConfig \(POLY\)"),
        (LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[1]), "LoraConfig with `alora_invocation_tokens`"),
    ],
)
def test_adapters_with_a_forward_of_their_own_are_refused(build, config, found):
    with pytest.raises(ConfigError, match=f"The adapter is a {found}, part of which PEFT does in a forward"):
        build(peft_config=config)


def test_settings_for_a_student_that_is_loaded_are_refused(build):
    with pytest.raises(ConfigError, match="`model_init_kwargs` says how to load the student, but `model` is a loaded"):
        build(model=tiny_model("llama", 49152), model_init_kwargs={"dtype": "bfloat16"})


def test_several_gpus_in_one_process_are_refused(build, tmp_path):
    args = tiny_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"does not support `nn.DataParallel`.*Launch the script with `accelerate"):
        build(args=args)


class TestMessages:
    """Each message has a sentence on what to do, so a user need not read the code."""

    told: ClassVar = ["Pass", "Set", "Check", "Use", "Leave", "Keep", "Give", "Launch", "Lower", "Choose", "must be"]

    @pytest.mark.parametrize(
        "cause",
        [
            lambda: setup.check_args(SFTConfig(use_cpu=True, bf16=False), "student"),
            lambda: setup.check_teacher(None, "student", CrossTokenizerGKDConfig()),
            lambda: loading.check_model(3, "model"),
            lambda: loading.set_pad_token(without_special_tokens(), CrossTokenizerGKDConfig()),
            lambda: prepare_datasets(None, None, None, CrossTokenizerGKDConfig(), None),
            lambda: prepare_datasets([], None, None, CrossTokenizerGKDConfig(), None),
            lambda: PromptCollator(real_tokenizers.smollm2(), real_tokenizers.mistral1(), 1).tokenize("a b c"),
        ],
    )
    def test_says_what_to_do(self, cause):
        with pytest.raises(XTokError) as error:
            cause()
        assert any(word in str(error.value) for word in self.told), str(error.value)
