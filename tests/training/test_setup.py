"""Bad input: what cannot work is refused before training, with what was found, why it cannot go on, and what to do."""

import copy
from typing import ClassVar

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, models
from torch import nn
from transformers import BitsAndBytesConfig, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig

from tests import real_tokenizers
from tests.training.shared_tokenizers import shared_tokenizers
from tests.training.tiny_models import prompt_dataset, save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.errors import ConfigError, DataError, ModelError, TemplateError, TokenizerError, XTokError
from trl_xtok.training import loading, setup
from trl_xtok.training.data import PromptCollator


CONVERSATIONS = [{"prompt": [{"role": "user", "content": "Hi"}]}, {"prompt": [{"role": "user", "content": "Why?"}]}]


@pytest.fixture
def build(tmp_path, student_path, teacher_path):
    """Build a trainer for the shared models; what is not an argument of the trainer is one of its `args`."""
    names = {"train_dataset", "eval_dataset", "data_collator", "processing_class", "teacher_processing_class"}
    names |= {"peft_config", "quantization_config", "compute_metrics", "formatting_func"}
    names |= {"preprocess_logits_for_metrics"}

    def build_trainer(*, model=student_path, teacher=teacher_path, args=None, **rest):
        arguments = shared_tokenizers() | {name: rest.pop(name) for name in list(rest) if name in names}
        return tiny_trainer(model, teacher, args or tiny_args(tmp_path, **rest), **arguments)

    return build_trainer


@pytest.fixture
def no_weights(monkeypatch):
    """Fail if weights are read: what is refused under this fixture costs the user nothing."""

    def fail(*args, **kwargs):
        raise AssertionError("Weights were loaded before the input was checked.")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
    monkeypatch.setattr("transformers.modeling_utils.PreTrainedModel.from_pretrained", classmethod(fail))


def gpt2(**config: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32000, n_embd=16, n_layer=1, n_head=2, **config))


def without_template(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    clone = copy.deepcopy(tokenizer)
    clone.chat_template = None
    return clone


def without_special_tokens() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=real_tokenizers.smollm2().backend_tokenizer)


def unreadable() -> PreTrainedTokenizerFast:
    """A fast tokenizer that does not say what its tokens spell."""
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="b", pad_token="b")


def test_every_error_is_of_the_package_and_of_the_standard_library():
    for error in (ConfigError, DataError, ModelError, TemplateError, TokenizerError):
        assert issubclass(error, XTokError)
        assert issubclass(error, ValueError)


# Models.


@pytest.mark.usefixtures("no_weights")
class TestModels:
    def test_there_must_be_a_teacher(self, build):
        with pytest.raises(ConfigError, match=r"`teacher_model` and `args.teacher_model_name_or_path` are both None"):
            build(teacher=None)

    @pytest.mark.parametrize("argument", ["model", "teacher"])
    def test_a_model_is_a_name_or_a_model(self, build, argument):
        with pytest.raises(ConfigError, match=rf"`{argument}.*` is a Linear, but must be the name or path"):
            build(**{argument: nn.Linear(2, 2)})

    def test_an_unknown_student_is_named(self, build):
        with pytest.raises(
            ModelError, match=r"(?s)The configuration of 'nobody/nothing' cannot be loaded.*Check the name"
        ):
            build(model="nobody/nothing")

    def test_an_unknown_teacher_is_named(self, build):
        with pytest.raises(
            ModelError, match=r"(?s)The configuration of 'nobody/nothing' cannot be loaded.*Check the name"
        ):
            build(teacher="nobody/nothing")

    @pytest.mark.parametrize(
        ("model", "tokenizer"), [("model", "processing_class"), ("teacher", "teacher_processing_class")]
    )
    def test_an_unknown_tokenizer_is_named(self, build, model, tokenizer):
        with pytest.raises(TokenizerError, match="The tokenizer of 'nobody/nothing' cannot be loaded"):
            build(**{model: "nobody/nothing", tokenizer: None})

    def test_a_folder_without_a_model_is_named(self, build, tmp_path):
        with pytest.raises(ModelError, match="cannot be loaded"):
            build(teacher=str(tmp_path))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("load_teacher_in_4bit", True),
            ("teacher_quantization_config", {"load_in_4bit": True}),
            ("teacher_model_init_kwargs", {"dtype": "float16"}),
        ],
    )
    def test_how_to_load_a_teacher_that_is_loaded_is_refused(self, build, name, value):
        with pytest.raises(ConfigError, match=rf"`{name}=.*says how to load the teacher, but .* loaded Qwen2"):
            build(teacher=tiny_model("qwen2", 32000), **{name: value})

    def test_how_to_load_a_student_that_is_loaded_is_refused(self, build):
        with pytest.raises(ConfigError, match="says how to load the student, but `model` is a loaded Llama"):
            build(model=tiny_model("llama", 49152), quantization_config=BitsAndBytesConfig(load_in_4bit=True))

    def test_there_is_one_way_to_quantize_the_student(self, build):
        four_bit = BitsAndBytesConfig(load_in_4bit=True)
        with pytest.raises(ConfigError, match=r"and in `args.model_init_kwargs`. Keep one"):
            build(quantization_config=four_bit, model_init_kwargs={"quantization_config": four_bit})

    @pytest.mark.parametrize(
        "model",
        [
            pytest.param(lambda: tiny_model("llama", 32000, max_position_embeddings=16), id="Llama"),
            # Its configuration calls it `n_positions`.
            pytest.param(lambda: gpt2(n_positions=16), id="GPT-2"),
        ],
    )
    def test_a_teacher_that_cannot_read_a_completion_is_refused(self, build, tmp_path, model):
        small = save(model(), real_tokenizers.mistral1(), tmp_path / "small")
        with pytest.raises(ConfigError, match="The teacher reads at most 16 tokens, and `max_new_tokens=16`"):
            build(teacher=small, max_new_tokens=16)

    def test_a_student_that_cannot_read_a_completion_is_refused(self, build, tmp_path):
        model = tiny_model("llama", 49152, max_position_embeddings=16)
        small = save(model, real_tokenizers.smollm2(), tmp_path / "small")
        with pytest.raises(ConfigError, match="The student reads at most 16 tokens, and `max_new_tokens=16`"):
            build(model=small, max_new_tokens=16)


# Tokenizers.


@pytest.mark.usefixtures("no_weights")
class TestTokenizers:
    sides = pytest.mark.parametrize("side", ["processing_class", "teacher_processing_class"])

    @sides
    def test_a_slow_tokenizer_is_refused(self, build, side):
        with pytest.raises(TokenizerError, match=r"ByT5Tokenizer .*is not a fast tokenizer"):
            build(**{side: ByT5Tokenizer()})

    @sides
    def test_a_tokenizer_that_cannot_be_read_is_refused(self, build, side):
        with pytest.raises(TokenizerError, match=r"has the decoder None.*Supported are"):
            build(**{side: unreadable()})

    @sides
    def test_what_is_no_tokenizer_is_refused(self, build, side):
        with pytest.raises(ConfigError, match=f"`{side}` is a str, but must be a tokenizer"):
            build(**{side: "some/tokenizer"})

    @pytest.mark.parametrize(
        ("model", "side"), [("model", "processing_class"), ("teacher", "teacher_processing_class")]
    )
    def test_a_loaded_model_of_unknown_origin_needs_its_tokenizer(self, build, model, side):
        with pytest.raises(ConfigError, match=f"`{side}` is None and the loaded Llama.*Pass `{side}`"):
            build(**{model: tiny_model("llama", 49152), side: None})

    def test_a_student_without_pad_and_end_token_is_refused(self, build):
        with pytest.raises(ConfigError, match=r"neither a pad nor an EOS token.*Set `tokenizer.pad_token`"):
            build(processing_class=without_special_tokens())

    @pytest.mark.filterwarnings("ignore:`pad_token` is deprecated:FutureWarning")
    def test_a_pad_token_outside_the_vocabulary_is_refused(self, build):
        """The tokenizer would take its unknown token for it, without a word."""
        with pytest.raises(ConfigError, match="pad token '<nothing>' is not in the vocabulary"):
            build(pad_token="<nothing>")

    def test_a_template_to_be_cloned_is_refused(self, build, teacher_path):
        with pytest.raises(ConfigError, match=r"`chat_template_path=.*clone_chat_template"):
            build(chat_template_path=teacher_path)

    @pytest.mark.parametrize("name", ["chat_template_path", "teacher_chat_template_path"])
    def test_a_template_file_must_be_there(self, build, name):
        with pytest.raises(TemplateError, match=r"no chat template at 'missing.jinja'"):
            build(**{name: "missing.jinja"})


def test_a_student_without_a_pad_token_gets_its_end_token():
    tokenizer = copy.deepcopy(real_tokenizers.mistral1())
    assert tokenizer.pad_token is None
    loading.set_pad_token(tokenizer, CrossTokenizerGKDConfig())
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def test_a_pad_token_that_is_there_is_kept():
    tokenizer = copy.deepcopy(real_tokenizers.smollm2())
    tokenizer.pad_token = "<|endoftext|>"
    loading.set_pad_token(tokenizer, CrossTokenizerGKDConfig())
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


# Datasets.


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
    with pytest.raises(ValueError, match="appears to be vision-related"):
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


# Arguments that contradict this trainer.


@pytest.mark.usefixtures("no_weights")
class TestArguments:
    @pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics", "formatting_func"])
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

    def test_deepspeed_is_refused(self, build, tmp_path):
        args = tiny_args(tmp_path)
        args.deepspeed_plugin = object()
        with pytest.raises(ConfigError, match=r"launched with DeepSpeed.*Launch it with DDP"):
            build(args=args)

    def test_fsdp_asked_for_in_the_arguments_is_refused(self, build, tmp_path):
        args = tiny_args(tmp_path)
        args.fsdp_plugin_args = {}
        with pytest.raises(ConfigError, match="launched with FSDP"):
            build(args=args)

    def test_fsdp_asked_for_by_the_launcher_is_refused(self, build, tmp_path, monkeypatch):
        args = tiny_args(tmp_path)
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ConfigError, match="launched with FSDP"):
            build(args=args)


def test_several_gpus_in_one_process_are_refused(build, tmp_path):
    args = tiny_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"does not support `nn.DataParallel`.*Launch the script with `accelerate"):
        build(args=args)


# Heads.


def test_an_adapter_on_the_head_is_refused(build):
    with pytest.raises(ValueError, match="`lm_head`"):
        build(peft_config=LoraConfig(target_modules=["q_proj", "lm_head"]))


def test_a_teacher_with_a_four_bit_head_is_refused(build, tmp_path):
    # Untied, and of sizes that bitsandbytes can pack on a CPU.
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "tie_word_embeddings": False}
    model = tiny_model("llama", 32000, num_key_value_heads=2, **sizes)
    teacher = save(model, real_tokenizers.mistral1(), tmp_path / "teacher")
    with pytest.raises(ModelError, match=r"has a head of Linear4bit in torch.uint8.*llm_int8_skip_modules"):
        build(
            teacher=teacher,
            teacher_quantization_config={"load_in_4bit": True, "llm_int8_skip_modules": ["nothing"]},
        )


class Shouting(nn.Module):
    """A head that does more than its weight says."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden):
        return 3 * nn.functional.linear(hidden, self.weight)


def test_a_teacher_whose_head_does_something_unknown_is_refused(build, load, teacher_path):
    teacher = load(teacher_path)
    teacher.lm_head = Shouting(teacher.lm_head)
    with pytest.raises(
        ModelError, match=r"The teacher .* gives its own logits the log-probs .* but its hidden states"
    ):
        build(teacher=teacher)


class TestMessages:
    """Each message has a sentence on what to do, so a user need not read the code."""

    told: ClassVar = ["Pass", "Set", "Check", "Use", "Leave", "Keep", "Give", "Launch", "Lower", "Choose", "must be"]

    @pytest.mark.parametrize(
        "cause",
        [
            lambda: setup.check_args(SFTConfig(use_cpu=True, bf16=False), "student"),
            lambda: setup.check_teacher(None, CrossTokenizerGKDConfig()),
            lambda: loading.check_model(3, "model"),
            lambda: loading.set_pad_token(without_special_tokens(), CrossTokenizerGKDConfig()),
            lambda: setup.check_datasets(None, None, None, custom=False),
            lambda: setup.check_datasets([], None, None, custom=False),
            lambda: PromptCollator(real_tokenizers.smollm2(), real_tokenizers.mistral1(), 1).tokenize("a b c"),
        ],
    )
    def test_says_what_to_do(self, cause):
        with pytest.raises(XTokError) as error:
            cause()
        assert any(word in str(error.value) for word in self.told), str(error.value)


def test_loading_the_teacher_says_what_was_asked_for(build):
    with pytest.raises(ModelError, match=r"The teacher '.*' cannot be loaded with .*'attn_implementation': 'magic'"):
        build(teacher_model_init_kwargs={"attn_implementation": "magic"})
