"""What a run may not be launched with, in the arguments or in the environment that `accelerate launch` sets."""

from types import SimpleNamespace

import pytest

from tests.training.bad_input import builder, forbid_weights
from tests.training.tiny_models import tiny_args
from trl_xtok.errors import ConfigError
from trl_xtok.training.launch import check_launch


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({"ACCELERATE_USE_FSDP": "1", "FSDP_VERSION": "1"}, "FSDP of version 1"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "tensor or context parallelism"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "`torch.compile`"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()),
)
def test_what_the_launcher_says_in_the_environment(tmp_path, monkeypatch, variables, launcher):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"The run is launched with {launcher}"):
        check_launch(tiny_args(tmp_path))


def test_deepspeed_that_shards_parameters(tmp_path):
    """It is not installed here, so its plugin is a stand-in; `test_deepspeed.py` has the real one."""
    args = tiny_args(tmp_path)
    for stage in (0, 1, 2):
        args.deepspeed_plugin = SimpleNamespace(zero_stage=stage)
        check_launch(args)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    with pytest.raises(ConfigError, match=r"launched with DeepSpeed ZeRO stage 3.*Launch it with DDP"):
        check_launch(args)


def test_deepspeed_asked_for_by_the_launcher_never_gets_past_the_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ImportError, match="deepspeed"):
        tiny_args(tmp_path)


def test_a_plain_launch_is_accepted(tmp_path, monkeypatch):
    for name in ("FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    check_launch(tiny_args(tmp_path))


def test_the_trainer_checks_its_launch_before_it_loads_weights(tmp_path, student_path, teacher_path, monkeypatch):
    forbid_weights(monkeypatch)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="launched with FSDP"):
        builder(tmp_path, student_path, teacher_path)()
