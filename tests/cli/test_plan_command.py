"""`trl-xtok plan`, as it is typed."""

import json
from typing import get_args

import pytest
from transformers import LlamaConfig, Qwen2Config

from trl_xtok.cli import main
from trl_xtok.cli.plan import _OBJECTIVES
from trl_xtok.training.config_checks import ObjectiveName


SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2}


@pytest.fixture
def plan(tmp_path, capsys, monkeypatch):
    """Runs the command on two small models, and returns its status and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")
    LlamaConfig(vocab_size=1000, **SHAPE).save_pretrained(tmp_path / "student")
    Qwen2Config(vocab_size=1200, **SHAPE).save_pretrained(tmp_path / "teacher")

    def run(*flags: str, student: str = "student") -> tuple[int, str, str]:
        status = main(["plan", str(tmp_path / student), str(tmp_path / "teacher"), *flags])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_items_and_cards_are_shown(plan):
    status, out, _ = plan("--use_peft", "--load_in_4bit", "--load_teacher_in_4bit", "--num_processes", "2")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for word in (
        "student weights",
        "KV cache",
        "optimizer state",
        "T4",
        "A100-80GB",
        "DDP",
        "not run on real hardware",
    ):
        assert word in " ".join(out.split())


def test_json_is_all_there_is(plan):
    status, out, _ = plan("--gpu", "t4", "--gpu", "L4", "--format", "json", "--objective", "prefix_jsd")
    found = json.loads(out)
    assert (status, list(found["gpus"])) == (0, ["T4", "L4"])
    assert found["peak_bytes"] == sum(found["phases"][found["peak_phase"]].values())
    assert found["gpus"]["T4"]["largest_batch"] > 8


def test_a_sharded_student(plan):
    status, out, _ = plan("--fsdp", "--num_processes", "4")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    for words in ("gathered weights", "FSDP2: each of the 4 devices holds its share"):
        assert words in " ".join(out.split())
    assert "DDP" not in out


def test_modules_of_an_adapter_are_named_as_in_training(plan):
    """PEFT takes the query and value projections by default; `all-linear` is a word of its own."""
    trained = []
    for modules in ([], ["q_proj"], ["q_proj", "v_proj"], ["all-linear"]):
        flags = ["--lora_target_modules", *modules] if modules else []
        status, out, err = plan("--use_peft", "--gpu", "T4", "--format", "json", *flags)
        assert status == 0, err
        trained.append(json.loads(out)["phases"]["student"]["trained weights"])
    default, one, two, every = trained
    assert one < two == default < every


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--load_in_4bit"], "A quantized student cannot be trained by itself"),
        (["--use_peft", "--load_in_4bit", "--load_in_8bit"], "contradict each other"),
        (["--lora_r", "8"], "`--lora_r` has no effect without `--use_peft`"),
        (["--block_size", "0"], "`block_size` must be at least 1, got 0"),
        (["--gpu", "t4", "--output", "."], "is a folder. Name a file in it, for example plan.txt"),
        (["--gpu", "RTX"], "No graphics card is called 'RTX' here"),
        (["--optim", "magic"], "The memory of `optim='magic'` is not known"),
        (["--per_device_train_batch_size", "0"], "`per_device_train_batch_size` must be at least 1, got 0"),
        (["--use_peft", "--lora_target_modules", "nothing"], "The adapter does not fit"),
        (["--fsdp"], "`fsdp` shards the student over several devices, but `num_processes` is 1"),
        (["--sync_each_batch"], "`--sync_each_batch` has no effect without `--fsdp`"),
    ],
)
def test_what_is_wrong_is_said(plan, flags, message):
    status, out, err = plan(*flags)
    assert (status, out) == (1, "")
    assert err.startswith("trl-xtok plan: error: ")
    assert message in err


def test_a_model_that_is_not_there_is_said(plan):
    status, _, err = plan(student="nowhere")
    assert status == 1
    assert "There is no folder" in err


def test_it_knows_the_objectives_of_training():
    """They stand there once more, since the help is to need no torch."""
    assert set(_OBJECTIVES) == set(get_args(ObjectiveName))
