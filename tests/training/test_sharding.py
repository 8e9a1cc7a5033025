"""FSDP2: what a run with a sharded student saves, goes on from, and rounds."""

import json
from typing import Any

import pytest
from accelerate.utils import DistributedType

from tests.training.test_processes import run_two_ranks
from tests.training.tiny_models import tiny_args
from trl_xtok.errors import ConfigError
from trl_xtok.training.launch import check_launch


@pytest.fixture(scope="module")
def runs(tmp_path_factory, student_path, teacher_path) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("fsdp")
    run_two_ranks(student_path, teacher_path, str(folder), "fsdp", module="tests.training.two_ranks_sharded")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("way", ["in the arguments", "launched"])
class TestRuns:
    def test_each_process_has_half_of_the_student(self, runs, way):
        assert [rank[way]["share"] for rank in runs] == [0.5, 0.5]

    def test_a_resumed_run_ends_as_the_one_that_was_not_interrupted(self, runs, way):
        for rank in runs:
            assert rank[way]["same end"]
            assert rank[way]["resumed"] == rank[way]["losses"]
        assert len(set(runs[0][way]["losses"])) == 4

    def test_log_probs_leave_the_forward_in_full_precision(self, runs, way):
        for rank in runs:
            assert (rank[way]["dtype"], rank[way]["rounded"]) == ("torch.float32", False)


def test_each_process_has_the_whole_teacher(runs):
    """The launcher has a variable by which the others may leave weights to the first one."""
    assert all(runs[0][way]["teacher"] == runs[1][way]["teacher"] for way in runs[0])


def test_the_whole_student_is_saved(runs):
    assert all(rank["in the arguments"]["saved"] for rank in runs)


@pytest.fixture
def on_gpus(monkeypatch):
    """As the launch of two processes on two GPUs is described."""

    def describe(args):
        monkeypatch.setattr(args.distributed_state, "distributed_type", DistributedType.MULTI_GPU)
        return args

    return describe


@pytest.mark.filterwarnings("ignore:.*fsdp.*:FutureWarning")
class TestLaunch:
    @pytest.mark.parametrize("changes", [{"fsdp": True}, {"fsdp": "full_shard auto_wrap"}])
    def test_fsdp_of_version_2_is_accepted(self, tmp_path, on_gpus, changes):
        check_launch(on_gpus(tiny_args(tmp_path, **changes)))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"fsdp": True, "fsdp_config": {"version": 1}}, "launched with FSDP of version 1"),
            ({"fsdp": True, "fsdp_config": {"xla": True}}, "launched with FSDP on XLA"),
            ({"fsdp": True, "optim": "adamw_bnb_8bit"}, "is one of bitsandbytes"),
            ({"fsdp_config": {"version": 2}}, "has no effect without `fsdp`"),
            ({"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}, "saves no model at the end"),
            (
                {
                    "fsdp": True,
                    "use_vllm": True,
                    "vllm_mode": "server",
                    "vllm_weight_sync": "reload",
                    "vllm_server_base_url": "http://127.0.0.1:1",
                },
                "one process saves the weights that it has",
            ),
        ],
    )
    def test_what_is_refused(self, tmp_path, on_gpus, changes, said):
        with pytest.raises(ConfigError, match=said):
            check_launch(on_gpus(tiny_args(tmp_path, **changes)))

    def test_one_process_shards_nothing(self, tmp_path):
        with pytest.raises(ConfigError, match=r"is for several GPUs, but has 1 process\(es\) on cpu"):
            check_launch(tiny_args(tmp_path, fsdp=True))

    @pytest.mark.parametrize(
        ("variables", "said"),
        [
            ({}, "FSDP of version 1"),
            ({"FSDP_VERSION": "1"}, "FSDP of version 1"),
            ({"FSDP_VERSION": "2"}, "the state dict type 'SHARDED_STATE_DICT'"),
        ],
        ids=lambda value: value if isinstance(value, str) else "".join(value.values()),
    )
    def test_what_the_launcher_says(self, tmp_path, on_gpus, monkeypatch, variables, said):
        for name, value in ({"ACCELERATE_USE_FSDP": "true"} | variables).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=said):
            check_launch(on_gpus(tiny_args(tmp_path)))
