"""The arguments of rollouts from vLLM: names and defaults of TRL, and what is refused."""

import dataclasses

import pytest
from trl import DistillationConfig

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError
from trl_xtok.training import engine_arguments
from trl_xtok.training.engine_arguments import check_engine


OURS = {"vllm_weight_sync", "vllm_weight_sync_dir"}


def config(**changes) -> CrossTokenizerGKDConfig:
    return CrossTokenizerGKDConfig("out", **changes)


def defaults(kind: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(kind) if "vllm" in field.name}


def test_names_and_defaults_are_those_of_trl():
    theirs = defaults(DistillationConfig)
    # It changes what is sampled.
    del theirs["vllm_structured_outputs_regex"]
    assert {name: value for name, value in defaults(CrossTokenizerGKDConfig).items() if name not in OURS} == theirs


def test_the_address_of_the_server():
    server = {"use_vllm": True, "vllm_mode": "server"}
    assert config(**server).vllm_url == "http://0.0.0.0:8000"
    assert config(**server, vllm_server_host="gpu1", vllm_server_port=81).vllm_url == "http://gpu1:81"
    assert config(**server, vllm_server_base_url="https://a/b").vllm_url == "https://a/b"


@pytest.mark.parametrize(
    ("lacks", "sync", "reloads"),
    [
        ("CUDA", "auto", True),
        ("CUDA", "reload", True),
        ("CUDA", "nccl", False),
        ("", "auto", False),
        ("", "reload", True),
    ],
)
def test_auto_is_nccl_where_it_can_be(monkeypatch, lacks, sync, reloads):
    monkeypatch.setattr(engine_arguments, "_what_lacks", lambda: lacks)
    assert config(use_vllm=True, vllm_mode="server", vllm_weight_sync=sync).reloads_weights is reloads
    assert not config().reloads_weights


@pytest.mark.parametrize(
    "changes", [{"vllm_mode": "colocate"}, {"vllm_mode": "server", "vllm_weight_sync": "nccl"}], ids=str
)
def test_what_needs_cuda_and_vllm_is_refused_without_them(monkeypatch, changes):
    monkeypatch.setattr(engine_arguments.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs CUDA.*vLLM, which is not installed here.*vllm_weight_sync='reload'"):
        check_engine(config(use_vllm=True, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"vllm_mode": "server"},
        {"vllm_server_port": 8001},
        {"vllm_weight_sync": "reload"},
        {"use_vllm": True, "vllm_server_base_url": "http://h"},
        {"use_vllm": True, "vllm_weight_sync": "reload"},
        {"use_vllm": True, "vllm_group_port": 5},
        {"use_vllm": True, "generation_batch_size": 4},
        {"use_vllm": True, "vllm_mode": "server", "vllm_weight_sync": "nccl", "generation_batch_size": 4},
        {"use_vllm": True, "vllm_mode": "server", "vllm_tensor_parallel_size": 2},
        {"use_vllm": True, "vllm_mode": "server", "vllm_weight_sync": "reload", "vllm_group_port": 5},
        {"use_vllm": True, "vllm_mode": "server", "vllm_weight_sync": "nccl", "vllm_weight_sync_dir": "x"},
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused(changes):
    with pytest.raises(ConfigError, match=f"`{[*changes][-1]}=.*has no effect"):
        config(**changes)


def test_a_batch_size_is_taken_where_something_reads_it():
    assert config(use_vllm=True, vllm_mode="server", vllm_weight_sync="reload", generation_batch_size=4)
    teacher_writes = {"seq_kd": True, "lmbda": 0.5, "objective": "chunk_jsd"}
    assert config(use_vllm=True, generation_batch_size=4, **teacher_writes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vllm_mode": "remote"}, "must be one of colocate, server"),
        ({"vllm_mode": "server", "vllm_weight_sync": "disk"}, "must be one of auto, nccl, reload"),
        ({"vllm_mode": "server", "vllm_server_timeout": 0.0}, "vllm_server_timeout` must be positive"),
        ({"vllm_mode": "server", "vllm_server_base_url": "h:1"}, "'h:1' is not the address of a server"),
        ({"vllm_mode": "server", "vllm_server_base_url": "http://me:pw@h"}, "has a user or a password in it"),
        ({"vllm_gpu_memory_utilization": 30.0}, "must be above 0 and at most 1, got 30"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(use_vllm=True, **changes)
