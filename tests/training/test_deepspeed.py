"""DeepSpeed, which is in a folder of its own in the user's cache: ZeRO stage 2 comes to the steps of DDP."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.training.test_processes import run_two_ranks


pytestmark = pytest.mark.deepspeed

_VERSION = "deepspeed==0.19.8"
# What it imports and the package does not.
_NEEDS = ("hjson", "msgpack", "py-cpuinfo", "einops", "ninja", "nvidia-ml-py")


@pytest.fixture(scope="module")
def deepspeed() -> str:
    """Where it is; its parts for the CPU are compiled when they are first used."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl_xtok"
    folder = cache / _VERSION.replace("==", "-")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not (folder / "installed").exists():
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
            done = subprocess.run([*command, _VERSION, *_NEEDS], capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"DeepSpeed cannot be installed: {done.stderr[-500:]}")
            (folder / "installed").touch()
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, deepspeed, student_path, teacher_path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for way in ("ddp", "zero2"):
        folder = tmp_path_factory.mktemp(way)
        paths = {"PYTHONPATH": deepspeed, "PATH": f"{deepspeed}/bin:{os.environ['PATH']}"}
        environment = {**paths, "ACCELERATE_USE_CPU": "0", "DS_ACCELERATOR": "cpu"} if way == "zero2" else {}
        module = "tests.training.two_ranks_sharded"
        run_two_ranks(student_path, teacher_path, str(folder), way, module=module, **environment)
        found[way] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return found


@pytest.mark.parametrize("student", ["whole", "adapter"])
def test_a_run_takes_the_steps_of_ddp(runs, student):
    for ours, theirs in zip(runs["zero2"], runs["ddp"], strict=True):
        assert ours[student]["losses"] == pytest.approx(theirs[student]["losses"], rel=1e-5)
    assert len(set(runs["ddp"][0][student]["losses"])) == 4


@pytest.mark.parametrize("student", ["whole", "adapter"])
def test_a_resumed_run_ends_as_the_one_that_was_not_interrupted(runs, student):
    for rank in runs["zero2"]:
        assert rank[student]["same end"]
        assert rank[student]["resumed"] == rank[student]["losses"]


def test_the_whole_student_is_saved(runs):
    assert all(rank["whole"]["saved"] for rank in runs["zero2"])
