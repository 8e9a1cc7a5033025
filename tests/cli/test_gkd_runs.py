"""Runs of `trl-xtok gkd` from the first argument to the saved student."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.tiny_models import PROMPTS
from trl_xtok.training.script import resolve, student_quantization
from trl_xtok.training.script_arguments import GKDParser
from trl_xtok.training.script_data import load_datasets


ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def state(folder: Path) -> dict:
    return json.loads((folder / "trainer_state.json").read_text())


def test_a_run_trains_saves_and_goes_on(trl_xtok, base, tmp_path, student_path, monkeypatch):
    """With a configuration file, whose `env` is set and whose values give way to flags; evaluation, LoRA, resuming."""
    monkeypatch.delenv("XTOK_TEST", raising=False)
    config = tmp_path / "run.yaml"
    config.write_text("env:\n  XTOK_TEST: 1\nlearning_rate: 1.0e-3\nseed: 7\nlora_target_modules: all-linear\n")
    data = tmp_path / "data"
    for name, rows in (("train", PROMPTS), ("test", PROMPTS[:2])):
        Dataset.from_dict({"prompt": rows}).to_parquet(data / f"{name}.parquet")
    argv = [*base, "--config", config, "--dataset_name", data, "--use_peft", "--learning_rate", "2e-3"]
    argv += ["--lr_scheduler_type", "constant", "--save_strategy", "steps", "--save_steps", "1"]
    status, out, err = trl_xtok("gkd", *argv, "--eval_strategy", "steps", "--eval_steps", "1")
    assert status == 0, err
    assert "Training completed." in out
    folder = tmp_path / "out"
    assert os.environ.pop("XTOK_TEST") == "1"
    history = state(folder / "checkpoint-2")["log_history"]
    assert {log["learning_rate"] for log in history if "learning_rate" in log} == {2e-3}
    assert sum("eval_loss" in log for log in history) == 2
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
    assert "The teacher was `teacher" in (folder / "README.md").read_text()

    status, _, err = trl_xtok("gkd", *argv, "--max_steps", "3", "--resume_from_checkpoint", "true")
    assert status == 0, err
    resumed = state(folder / "checkpoint-3")
    assert resumed["global_step"] == 3
    assert [log["step"] for log in resumed["log_history"] if "loss" in log] == [1, 2, 3]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student_path), folder)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_several_teachers_train_from_a_file_as_from_flags(trl_xtok, base, two_teachers, tmp_path):
    flags = [*two_teachers, "--teacher_weights", '{"code": 0.5}', "--learning_rate", "1e-3"]
    assert trl_xtok("gkd", *base, *flags).status == 0
    config = {"teacher_model_name_or_path": json.loads(two_teachers[-1]), "teacher_weights": {"code": 0.5}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    place = base.index("--teacher_model_name_or_path")
    argv = [*base[:place], *base[place + 2 :], *two_teachers[:2], "--learning_rate", "1e-3"]
    status, _, err = trl_xtok("gkd", *argv, "--config", tmp_path / "run.yaml", "--output_dir", tmp_path / "again")
    assert status == 0, err
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "again"))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert "The teachers were `" in (tmp_path / "again" / "README.md").read_text()


def test_there_is_nothing_to_resume(trl_xtok, base):
    status, _, err = trl_xtok("gkd", *base, "--resume_from_checkpoint", "last")
    assert status == 1
    assert "There is no checkpoint to go on from" in err


def test_one_module_of_an_adapter_is_a_name(base):
    arguments = GKDParser("gkd").read([*base, "--use_peft", "--lora_target_modules", "q_proj"])
    resolve(arguments)
    assert arguments.model.lora_target_modules == ["q_proj"]


def test_what_other_libraries_refuse_is_said_without_a_traceback(trl_xtok, base):
    status, _, err = trl_xtok("gkd", *base, "--attn_implementation", "magic")
    assert status == 1
    assert "trl-xtok gkd: error: The trainer cannot be made of these arguments: Specified `attn_implementation=" in err


def test_flags_of_either_model_are_its_own(base):
    """A 4-bit student in half precision, a 4-bit teacher in its own."""
    argv = ["--use_peft", "--load_in_4bit", "--load_teacher_in_4bit", "--dtype", "bfloat16", "--lora_r", "4"]
    arguments = GKDParser("gkd").read(
        [*base, *argv, "--attn_implementation", "eager", "--resume_from_checkpoint", "x"]
    )
    resolve(arguments)
    loading = {"revision": "main", "trust_remote_code": False, "dtype": "bfloat16", "attn_implementation": "eager"}
    assert arguments.training.model_init_kwargs == loading
    assert arguments.training.teacher_model_init_kwargs is None
    assert arguments.training.resume_from_checkpoint == "x"
    quantization = student_quantization(arguments.model)
    assert (quantization.load_in_4bit, quantization.bnb_4bit_compute_dtype) == (True, torch.bfloat16)


@pytest.mark.slow
def test_two_machines(base, tmp_path):
    """With the file for two machines of eight GPUs, but one process for each, over gloo, and both of them here."""
    argv = [*base, "--accelerate_config", "examples/recipes/accelerate_two_machines.yaml", "--max_steps", "1"]
    argv += ["--log_completions", "--num_processes", "2", "--main_process_port", str(free_port())]
    command = [sys.executable, "-m", "trl_xtok.cli", "gkd", *argv]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    runs = [
        subprocess.Popen(
            [*command, *rank], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in ([], ["--machine_rank", "1", "--main_process_ip", "127.0.0.1"])
    ]
    try:
        said = [run.communicate(timeout=480)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], said
    assert len(pd.read_parquet(tmp_path / "out/completions/completions_00001.parquet")) == 4


def test_two_processes(base, tmp_path, student_path):
    """Started by Accelerate, over gloo; what both of them wrote is in the log of the first. All weights train."""
    argv = [*base, "--log_completions", "--max_steps", "1", "--multi_gpu", "--num_processes", "2"]
    argv += ["--learning_rate", "1e-2"]
    command = [sys.executable, "-m", "trl_xtok.cli", "gkd", *argv, "--main_process_port", "0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    run = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("Training completed.") == 1
    assert len(pd.read_parquet(tmp_path / "out/completions/completions_00001.parquet")) == 4
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (student_path, tmp_path / "out"))
    moved = [not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True)]
    assert any(moved)


class TestDatasets:
    @pytest.fixture
    def load(self, base, tmp_path):
        """The datasets that a command line names."""

        def load_them(*argv: object, config: str = ""):
            arguments = [*map(str, argv)] if config else [*base, *map(str, argv)]
            if config:
                path = tmp_path / "run.yaml"
                path.write_text(config)
                arguments += ["--config", str(path), *base[:4], "--output_dir", str(tmp_path)]
            return load_datasets(GKDParser("gkd").read(arguments))

        return load_them

    def test_one_file_and_a_part_of_it(self, load):
        train, evaluation = load("--dataset_train_split", "train[:3]")
        assert (train["prompt"], evaluation) == (PROMPTS[:3], None)

    def test_what_was_saved_to_disk(self, load, tmp_path):
        rows = Dataset.from_dict({"prompt": PROMPTS})
        DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "saved")
        train, evaluation = load("--dataset_name", tmp_path / "saved", "--eval_strategy", "epoch")
        assert (len(train), len(evaluation)) == (len(PROMPTS), 1)

    def test_a_stream(self, load):
        train, _ = load("--dataset_streaming")
        assert next(iter(train)) == {"prompt": PROMPTS[0]}

    def test_a_mixture(self, load, prompts_path):
        entry = f"  - {{path: json, data_files: {prompts_path}, fraction: "
        train, evaluation = load(
            "--eval_strategy", "epoch", config=f"datasets:\n{entry}0.5}}\n{entry}0.25}}\ntest_split_size: 0.25\n"
        )
        assert (len(train), len(evaluation)) == (9, 3)

    def test_kinds_of_files_that_are_not_read(self, trl_xtok, base, tmp_path):
        (tmp_path / "prompts.docx").touch()
        status, _, err = trl_xtok("gkd", *base, "--dataset_name", tmp_path / "prompts.docx")
        assert status == 1
        assert "is of a kind that is not read here" in err
