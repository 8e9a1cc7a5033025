"""The training arguments in their forms: docstring, command line, YAML, JSON, copies."""

import dataclasses
import json

import pytest
import torch
from transformers import BitsAndBytesConfig
from trl import TrlParser

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.training.trl_compat import GKDConfig


INHERITED = {field.name for field in dataclasses.fields(GKDConfig)}
# Those of a class that it is made of are documented there.
DOCUMENTED = [part.__doc__ for part in CrossTokenizerGKDConfig.__mro__ if part.__module__.startswith("trl_xtok.")]
ARGUMENTS = "".join(text.partition("Args:")[2] for text in DOCUMENTED)
OWN = [field.name for field in dataclasses.fields(CrossTokenizerGKDConfig) if field.name not in INHERITED]


def test_every_argument_of_ours_is_documented_for_the_class_and_for_the_command_line():
    for field in dataclasses.fields(CrossTokenizerGKDConfig):
        if field.name in OWN:
            assert f"\n        {field.name} (`" in ARGUMENTS, field.name
            assert field.metadata["help"].endswith("."), field.name
    assert [line.split()[0] for line in ARGUMENTS.splitlines() if line.startswith(" " * 8 + OWN[0])] == [OWN[0]]


def test_the_class_documents_no_argument_that_it_does_not_have():
    documented = [line.split()[0] for line in ARGUMENTS.splitlines() if line.startswith(" " * 8) and line[8:9].strip()]
    assert sorted(documented) == sorted(OWN)


def config(**changes) -> CrossTokenizerGKDConfig:
    return CrossTokenizerGKDConfig("out", **changes)


def documented_default(name: str) -> str | None:
    lines = ARGUMENTS.splitlines()
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
    args = CrossTokenizerGKDConfig(
        "out", teacher_model_init_kwargs={"quantization_config": four_bit, "dtype": torch.bfloat16}
    )
    written = json.loads(args.to_json_string())["teacher_model_init_kwargs"]
    assert written["dtype"] == "bfloat16"
    assert written["quantization_config"]["load_in_4bit"]
    assert args.teacher_model_init_kwargs["quantization_config"] is four_bit

    args = CrossTokenizerGKDConfig(
        "out", teacher_quantization_config={"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float16}
    )
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
