"""The training arguments: what they accept, what they refuse and how they say so."""

import dataclasses
import json
import math
import re

import pytest
import torch
from transformers import BitsAndBytesConfig
from trl import TrlParser

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError
from trl_xtok.training.config_checks import ONLY_VALUE
from trl_xtok.training.trl_compat import GKDConfig


INHERITED = {field.name for field in dataclasses.fields(GKDConfig)}
OWN = [field.name for field in dataclasses.fields(CrossTokenizerGKDConfig) if field.name not in INHERITED]


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
        ("advantage_clip", 0.0),
        ("advantage_clip", -1.0),
        ("advantage_clip", math.nan),
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


@pytest.mark.parametrize("name", ["lmbda", "beta"])
def test_the_range_checks_of_gkd_still_apply(name):
    with pytest.raises(ValueError, match=name):
        config(**{name: 1.5})


def another(name):
    """A value of the same kind that the inherited checks accept."""
    value = ONLY_VALUE[name]
    others = {
        "truncation_mode": "keep_end",
        "loss_type": "dft",
        "packing_strategy": "wrapped",
        "dataset_text_field": "content",
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


def test_every_argument_of_ours_is_documented_for_the_class_and_for_the_command_line():
    arguments = CrossTokenizerGKDConfig.__doc__.partition("Args:")[2]
    for field in dataclasses.fields(CrossTokenizerGKDConfig):
        if field.name in OWN:
            assert f"\n        {field.name} (`" in arguments, field.name
            assert field.metadata["help"].endswith("."), field.name
    assert [line.split()[0] for line in arguments.splitlines() if line.startswith(" " * 8 + OWN[0])] == [OWN[0]]


def test_the_class_documents_no_argument_that_it_does_not_have():
    arguments = CrossTokenizerGKDConfig.__doc__.partition("Args:")[2]
    documented = [line.split()[0] for line in arguments.splitlines() if line.startswith(" " * 8) and line[8:9].strip()]
    assert sorted(documented) == sorted(OWN)


def documented_default(name: str) -> str | None:
    lines = CrossTokenizerGKDConfig.__doc__.splitlines()
    line = next(line for line in lines if line.startswith(f"        {name} ("))
    _, found, default = line.partition("defaults to `")
    return default.rstrip(":").rstrip(")").rstrip("`").strip('"') if found else None


@pytest.mark.parametrize("name", OWN)
def test_the_documented_default_is_the_default(name):
    default = next(field.default for field in dataclasses.fields(CrossTokenizerGKDConfig) if field.name == name)
    assert documented_default(name) == (None if default is None else str(default))


def parse(*flags: str) -> CrossTokenizerGKDConfig:
    (args,) = TrlParser((CrossTokenizerGKDConfig,)).parse_args_and_config(["--output_dir", "out", *flags])
    return args


def test_the_command_line_gives_the_same_arguments_as_the_class():
    parsed, built = parse().to_dict(), CrossTokenizerGKDConfig("out").to_dict()
    assert parsed == built


def test_the_command_line_sets_every_kind_of_argument():
    args = parse(
        *("--credit", "additive", "--advantage_clip", "5", "--load_teacher_in_4bit", "--block_size", "64"),
        *("--teacher_chat_template_kwargs", '{"enable_thinking": false}', "--min_coverage", "0.25"),
    )
    assert (args.credit, args.advantage_clip, args.load_teacher_in_4bit) == ("additive", 5.0, True)
    assert (args.block_size, args.min_coverage) == (64, 0.25)
    assert args.teacher_chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(("flag", "value"), [("mean", "mean"), ("-2.5", -2.5), ("0", 0.0)])
def test_the_command_line_takes_a_charge_as_a_word_or_a_number(flag, value):
    assert parse("--dropped_advantage", flag).dropped_advantage == value


def test_the_command_line_explains_every_argument_of_ours(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert [name for name in OWN if f"--{name}" not in text] == []


def test_a_yaml_file_sets_arguments(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("credit: uniform\ndropped_advantage: -1.0\nteacher_quantization_config:\n  load_in_4bit: true\n")
    args = parse("--config", str(file))
    assert (args.credit, args.dropped_advantage) == ("uniform", -1.0)
    assert args.teacher_quantization_config == {"load_in_4bit": True}


FULL = {
    "dropped_advantage": -1.0,
    "advantage_clip": None,
    "teacher_quantization_config": '{"load_in_4bit": true}',
    "chat_template_kwargs": {"enable_thinking": False},
    "generation_batch_size": 4,
    "teacher_model_init_kwargs": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("changes", [{}, FULL], ids=["defaults", "everything"])
def test_arguments_survive_a_round_trip(changes):
    args = config(**changes)
    written = json.loads(args.to_json_string())
    assert {name: written[name] for name in OWN} == {name: getattr(args, name) for name in OWN}
    tokens = {name: None for name in written if name.endswith("_token")}
    again = CrossTokenizerGKDConfig(**written | tokens)
    assert again.to_dict() == args.to_dict()


def test_arguments_of_python_types_can_be_written_as_json():
    """As reporters do at the start of a run."""
    four_bit = BitsAndBytesConfig(load_in_4bit=True)
    args = config(teacher_model_init_kwargs={"quantization_config": four_bit, "dtype": torch.bfloat16})
    written = json.loads(args.to_json_string())["teacher_model_init_kwargs"]
    assert written["dtype"] == "bfloat16"
    assert written["quantization_config"]["load_in_4bit"]
    assert args.teacher_model_init_kwargs["quantization_config"] is four_bit

    args = config(teacher_quantization_config={"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float16})
    assert json.loads(args.to_json_string())["teacher_quantization_config"]["bnb_4bit_compute_dtype"] == "float16"


@pytest.mark.parametrize("changes", [{}, FULL], ids=["defaults", "everything"])
def test_arguments_can_be_replaced(changes):
    args = config(**changes)
    replaced = dataclasses.replace(args, learning_rate=1e-4)
    assert replaced.learning_rate == 1e-4
    assert {name: getattr(replaced, name) for name in OWN} == {name: getattr(args, name) for name in OWN}


def test_the_generation_batch_follows_the_training_batch_when_it_is_replaced():
    args = dataclasses.replace(config(per_device_train_batch_size=2), per_device_train_batch_size=16)
    assert args.generation_batch_size is None


@pytest.mark.parametrize(("name", "value"), [("num_completions_to_print", 0), ("log_unique_prompts", True)])
def test_how_completions_are_logged_needs_them_to_be_logged(name, value):
    with pytest.raises(ConfigError, match=f"`{name}={value}` has no effect without `log_completions=True`. Set that"):
        config(**{name: value})
    assert getattr(config(log_completions=True, **{name: value}), name) == value


@pytest.mark.parametrize("number", [-1, 1.5, True])
def test_a_number_of_completions_to_print_that_is_none_is_refused(number):
    with pytest.raises(ConfigError, match="`num_completions_to_print` must be None or a whole number of at least 0"):
        config(log_completions=True, num_completions_to_print=number)
