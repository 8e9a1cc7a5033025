"""Models and tokenizers that cannot be used are refused before any weights are read, by name and with a way out."""

import copy

import pytest
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig, ByT5Tokenizer

from tests import real_tokenizers
from tests.training.bad_input import builder, forbid_weights, gpt2, unreadable, without_special_tokens
from tests.training.tiny_models import save, tiny_model
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError, ModelError, TemplateError, TokenizerError
from trl_xtok.training import loading


@pytest.fixture
def build(tmp_path, student_path, teacher_path):
    return builder(tmp_path, student_path, teacher_path)


@pytest.fixture
def no_weights(monkeypatch):
    forbid_weights(monkeypatch)


@pytest.mark.usefixtures("no_weights")
class TestModels:
    def test_there_must_be_a_teacher(self, build):
        with pytest.raises(ConfigError, match=r"`teacher_model` and `args.teacher_model_name_or_path` are both None"):
            build(teacher=None)

    @pytest.mark.parametrize("argument", ["model", "teacher"])
    @pytest.mark.parametrize(("given", "found"), [(nn.Linear(2, 2), "a Linear"), ("", "empty")])
    def test_a_model_is_a_name_or_a_model(self, build, argument, given, found):
        with pytest.raises(ConfigError, match=rf"`{argument}.*` is {found}, but must be the name or path"):
            build(**{argument: given})

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
        with pytest.raises(ModelError, match="holds no configuration"):
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


def test_loading_the_teacher_says_what_was_asked_for(build):
    with pytest.raises(ModelError, match=r"The teacher '.*' cannot be loaded with .*'attn_implementation': 'magic'"):
        build(teacher_model_init_kwargs={"attn_implementation": "magic"})
