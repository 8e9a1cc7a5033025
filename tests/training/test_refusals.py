"""What would train on nothing, or on something else than it says, is refused."""

import pytest
from peft import PromptTuningConfig, get_peft_model

from tests import real_tokenizers
from tests.training.tiny_models import tiny_args, tiny_model
from trl_xtok.errors import ConfigError, DataError
from trl_xtok.training import setup
from trl_xtok.training.data import PromptCollator


@pytest.mark.parametrize("name", ["batch_eval_metrics", "torch_compile", "fp16", "use_liger_kernel"])
def test_settings_without_effect_are_refused_by_name(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        tiny_args(tmp_path, **{name: True})


def test_noise_in_the_scored_forward_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neftune_noise_alpha=5"):
        tiny_args(tmp_path, neftune_noise_alpha=5)


def test_teacher_that_shares_weights_with_the_student_is_refused(tmp_path):
    model = tiny_model("llama", 100)
    with pytest.raises(ConfigError, match="share parameters"):
        setup.check_teacher(model, model, tiny_args(tmp_path))


def test_prompt_tuned_teacher_is_refused(tmp_path):
    teacher = get_peft_model(tiny_model("llama", 100), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ConfigError, match="virtual tokens"):
        setup.check_teacher(teacher, tiny_model("llama", 100), tiny_args(tmp_path))


def test_prompt_tokens_beyond_the_embedding_are_refused():
    tokenizer = real_tokenizers.smollm2()
    collator = PromptCollator(tokenizer, tokenizer, teacher_vocab_size=100)
    with pytest.raises(DataError, match="teacher's embedding has 100 rows"):
        collator.tokenize("Once upon a time")
