"""The training arguments: what they accept, what they refuse and how they say so."""

import math
import re

import pytest
import torch

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError
from trl_xtok.training.config_checks import ONLY_VALUE


def config(**changes) -> CrossTokenizerGKDConfig:
    return CrossTokenizerGKDConfig("out", **changes)


def test_an_output_folder_is_enough_on_a_cpu():
    args = CrossTokenizerGKDConfig(output_dir="out")
    assert (args.bf16, args.fp16, args.use_cpu) == (False, False, True)
    assert (args.temperature, args.lmbda) == (1.0, 1.0)
    assert (args.learning_rate, args.max_new_tokens, args.max_length) == (2e-5, 128, 1024)


def test_even_the_output_folder_may_be_left_out():
    assert CrossTokenizerGKDConfig().use_cpu


def test_half_precision_can_be_asked_for():
    assert config(bf16=True).bf16
    assert config(bf16=False).bf16 is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "jsd"),
        ("credit", "even"),
        ("segmentation", "paths"),
        ("loss_backend", "triton"),
        ("temperature", "hot"),
        ("min_coverage", None),
        ("max_new_tokens", None),
        ("block_size", 1.5),
        ("advantage_clip", "none"),
        ("chunk_temperature", 0.0),
        ("chunk_weight", -1.0),
        ("chunk_weight", math.inf),
        ("chunk_weight", "heavy"),
        ("max_chunk_tokens", 0),
        ("max_chunk_tokens", True),
        ("advantage_baseline", "median"),
        ("scoring_temperature", 0.0),
        ("scoring_temperature", "1"),
        ("crossentropy_weight", -1.0),
        ("canonical_guard", -1.0),
        ("canonical_guard", float("inf")),
        ("canonical_guard", "1"),
        ("beta", math.nan),
        ("one_to_one_only", "no"),
        ("drop_whitespace", 1),
        ("load_teacher_in_4bit", "false"),
        ("eval_on_dataset", "yes"),
        ("log_completions", None),
        ("advantage_clip", 0.0),
        ("advantage_clip", -1.0),
        ("advantage_clip", math.nan),
        ("advantage_clip", math.inf),
        ("dropped_advantage", "median"),
        ("dropped_advantage", 0.5),
        ("dropped_advantage", "0.5"),
        ("dropped_advantage", math.nan),
        ("dropped_advantage", -math.inf),
        ("min_coverage", -0.1),
        ("min_coverage", 1.1),
        ("min_coverage", math.nan),
        ("block_size", 0),
        ("generation_batch_size", 0),
        ("max_new_tokens", 0),
        ("max_length", 0),
        ("per_device_train_batch_size", 0),
        ("per_device_eval_batch_size", "4"),
        ("gradient_accumulation_steps", 0),
        ("dataloader_num_workers", -1),
        ("seed", -1),
        ("max_steps", 0),
        ("max_steps", -2),
        ("learning_rate", -1.0),
        ("learning_rate", "1e-4"),
        ("num_train_epochs", -1.0),
        ("logging_steps", -1),
        ("save_steps", -5),
        ("eval_steps", -5),
        ("beta", "x"),
        ("beta", 1.5),
        ("lmbda", None),
        ("lmbda", True),
        ("lmbda", 1.5),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("chat_template_kwargs", "enable_thinking"),
        ("chat_template_kwargs", ["enable_thinking"]),
        ("teacher_chat_template_kwargs", "[1]"),
        ("teacher_quantization_config", "nf4"),
        ("teacher_quantization_config", {"load_in_4_bit": True}),
        ("teacher_model_init_kwargs", "bfloat16"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ConfigError) as error:
        config(**{name: value})
    assert f"`{name}" in str(error.value)
    assert str(value) in str(error.value)


def test_a_precision_that_torch_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="`teacher_model_init_kwargs` has the dtype 'float99'"):
        config(teacher_model_init_kwargs={"dtype": "float99"})


@pytest.mark.parametrize("dtype", ["auto", None, "bfloat16", "torch.float16", torch.bfloat16])
def test_a_precision_may_be_given_in_every_form_that_transformers_takes(dtype):
    assert config(teacher_model_init_kwargs={"dtype": dtype}).teacher_model_init_kwargs == {"dtype": dtype}


@pytest.mark.parametrize("value", ["mean", -1.5, "-1.5", 0, "0.0"])
def test_dropped_tokens_are_charged_the_mean_or_a_number(value):
    expected = value if value == "mean" else float(value)
    assert config(dropped_advantage=value).dropped_advantage == expected


def test_clipping_can_be_switched_off():
    assert config(advantage_clip=None).advantage_clip is None


def test_completions_that_fill_max_length_are_refused():
    with pytest.raises(ConfigError, match=r"`max_new_tokens=512` leaves no room .* `max_length=512`"):
        config(max_new_tokens=512, max_length=512)
    assert config(max_new_tokens=2048, max_length=None).max_new_tokens == 2048


def another(name):
    """A value of the same kind that the inherited checks accept."""
    value = ONLY_VALUE[name]
    others = {
        "truncation_mode": "keep_end",
        "loss_type": "dft",
        "packing_strategy": "wrapped",
        "include_for_metrics": ["loss"],
    }
    if name in others:
        return others[name]
    return not value if isinstance(value, bool) else 1 if value is None else 0.25


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ONLY_VALUE)
def test_an_inherited_argument_that_nothing_reads_is_refused(name):
    value = another(name)
    with pytest.raises(ConfigError, match=f"`{name}={re.escape(repr(value))}` is not supported"):
        config(**{name: value})


@pytest.mark.parametrize("name", ONLY_VALUE)
def test_an_inherited_argument_that_nothing_reads_may_be_given_at_its_default(name):
    assert getattr(config(**{name: ONLY_VALUE[name]}), name) == ONLY_VALUE[name]


@pytest.mark.parametrize("changes", [{}, {"lmbda": 0.0, "seq_kd": True}, {"lmbda": 0.5}])
def test_a_column_of_plain_text_is_for_runs_without_rollouts(changes):
    options = {"objective": "chunk_jsd", "dataset_text_field": "content"}
    with pytest.raises(ConfigError, match=r"`dataset_text_field='content'` names text.*Set `lmbda=0.0`"):
        config(**options, **changes)
    assert config(**options, lmbda=0.0).dataset_text_field == "content"


def test_a_fixed_charge_beside_a_mean_baseline_is_refused():
    with pytest.raises(ConfigError, match=r"`dropped_advantage=-1.0` beside `advantage_baseline='mean'`"):
        config(dropped_advantage=-1.0, advantage_baseline="mean")
    assert config(dropped_advantage=0.0, advantage_baseline="mean").dropped_advantage == 0


def test_one_limit_for_the_size_of_chunks():
    with pytest.raises(ConfigError, match="`max_chunk_tokens=4` has no effect beside `one_to_one_only=True`"):
        config(max_chunk_tokens=4, one_to_one_only=True)


def test_there_is_one_way_to_quantize_the_teacher():
    four_bit = {"load_in_4bit": True}
    with pytest.raises(ConfigError, match="Keep one of them"):
        config(load_teacher_in_4bit=True, teacher_quantization_config=four_bit)
    for asked in ({"load_teacher_in_4bit": True}, {"teacher_quantization_config": four_bit}):
        with pytest.raises(ConfigError, match=r"`teacher_model_init_kwargs` holds a `quantization_config`"):
            config(teacher_model_init_kwargs={"quantization_config": four_bit}, **asked)


@pytest.mark.parametrize("name", ["chat_template_kwargs", "teacher_chat_template_kwargs"])
def test_template_arguments_may_be_json(name):
    assert getattr(config(**{name: '{"enable_thinking": false}'}), name) == {"enable_thinking": False}


def test_the_teacher_quantization_may_be_json():
    text = '{"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"}'
    assert config(teacher_quantization_config=text).teacher_quantization_config == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    }


@pytest.mark.parametrize(("name", "value"), [("num_completions_to_print", 0), ("log_unique_prompts", True)])
def test_how_completions_are_logged_needs_them_to_be_logged(name, value):
    with pytest.raises(ConfigError, match=f"`{name}={value}` has no effect without `log_completions=True`. Set that"):
        config(**{name: value})
    assert getattr(config(log_completions=True, **{name: value}), name) == value


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_a_number_of_completions_to_print_that_is_none_is_refused(number):
    with pytest.raises(ConfigError, match="`num_completions_to_print` must be None or a whole number of at least 0"):
        config(log_completions=True, num_completions_to_print=number)
