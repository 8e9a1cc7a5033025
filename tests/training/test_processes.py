"""Two processes over gloo come to the same step as one."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests import real_tokenizers
from tests.serving.stub_server import Reply, Request
from tests.training.engine_server import EngineServer
from tests.training.fixed_rollouts import Step, without_times
from tests.training.two_ranks import cases, take


ROOT = Path(__file__).parents[2]
SECONDS = 400

# Batches as large as those of two ranks together.
DOUBLED = ("per_device_train_batch_size", "per_device_eval_batch_size")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def run_two_ranks(*arguments: str, module: str = "tests.training.two_ranks", **environment: str) -> None:
    """Run a module with torchrun; all of its processes end with this function."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    command += [f"--master_port={free_port()}", "-m", module, *arguments]
    defaults = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | defaults | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"Two processes did not end within {SECONDS} seconds:\n{output[-5000:]}")
    assert process.returncode == 0, output[-5000:]


@pytest.fixture(scope="module")
def engine(padded_student_path) -> Iterator[EngineServer]:
    with EngineServer(padded_student_path) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_URL", server.url)
        answer, firsts = server.answer, ["/v1/completions"]

        def cut_off_once(request: Request) -> Reply:
            # One of the two ranks has to send this request again, and the other one none.
            return Reply(b"", declared=len(firsts.pop())) if request.path in firsts else answer(request)

        server.answer = cut_off_once
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, padded_student_path, byteless_teacher_path, engine) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    run_two_ranks(padded_student_path, byteless_teacher_path, str(folder))
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Step]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def sharded_ranks(tmp_path_factory, padded_student_path, byteless_teacher_path) -> list[dict[str, Step]]:
    folder = tmp_path_factory.mktemp("sharded")
    run_two_ranks(padded_student_path, byteless_teacher_path, str(folder), "sharded")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", [name for name in cases() if name not in ("sampled", "engine")])
def test_two_processes_take_the_step_of_one(
    ranks, sharded_ranks, name, tmp_path, padded_student_path, byteless_teacher_path
):
    case = {key: 2 * value if key in DOUBLED else value for key, value in cases()[name].items()}
    one = take(padded_student_path, byteless_teacher_path, str(tmp_path), case)
    for rank in (*ranks, *sharded_ranks):
        two = rank[name]
        assert two.gradients.keys() == one.gradients.keys()
        for parameter, gradient in two.gradients.items():
            torch.testing.assert_close(
                gradient, one.gradients[parameter], atol=1e-5, rtol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}"
            )
    # Logs are those of the main process.
    for two in (ranks[0][name], sharded_ranks[0][name]):
        assert without_times(two.logged) == pytest.approx(without_times(one.logged), abs=1e-5, rel=1e-5)
        assert without_times(two.evaluated) == pytest.approx(without_times(one.evaluated), abs=1e-5, rel=1e-5)


def test_idle_steps_have_nothing_to_learn_from(ranks):
    """Guards the cases above: they must be what their names say."""
    assert all(gradient.count_nonzero() == 0 for gradient in ranks[0]["both ranks idle"].gradients.values())
    for name in ("one rank idle", "one rank only charged", "proportional", "hybrid", "exact_jsd", "cross-entropy"):
        assert any(gradient.count_nonzero() for gradient in ranks[1][name].gradients.values())
    assert ranks[0]["one rank only charged"].logged["xtok/dropped_invalid_utf8"] > 0


def test_ranks_sample_different_completions_for_the_same_prompt(ranks):
    completions = [tuple(ids) for rank in ranks for ids in rank["sampled"].sampled]
    assert len(set(completions)) == len(completions) == 4


def test_sharded_ranks_sample_what_whole_ones_sample(ranks, sharded_ranks):
    for whole, sharded in zip(ranks, sharded_ranks, strict=True):
        assert sharded["sampled"].sampled == whole["sampled"].sampled
        # They do not stop at the same token.
        assert sharded["streamed"].logged["loss"] == pytest.approx(whole["streamed"].logged["loss"], rel=1e-5)


def test_each_rank_asks_the_engine_for_its_own_completions(ranks, engine):
    # The weights go there once before the evaluation and once before the step, whatever the number of ranks; and once
    # more since one rank was interrupted. Both then ask again, for the same completions.
    assert engine.loaded == 3
    completions = [ids for rank in ranks for ids in rank["engine"].sampled]
    assert len({*map(tuple, completions)}) == 4
    assert all(ids in [*engine.completions.values()] for ids in completions)
    assert len(engine.completions) == 8
    for log in (ranks[0]["engine"].logged, ranks[0]["engine"].evaluated):
        assert max(value for name, value in log.items() if "sampling_logp_difference" in name) < 1e-4


def test_completions_of_all_ranks_are_kept_once(ranks, folder):
    decode = real_tokenizers.smollm2().decode
    sampled = [decode(ids, skip_special_tokens=True) for rank in ranks for ids in rank["sampled"].sampled]
    table = pd.read_parquet(folder / "completions/completions_00001.parquet")
    assert sorted(table["completion"]) == sorted(sampled)
    assert table["reverse_kl_per_byte"].nunique() > 1
    # A prompt that only fills up the last batch is not evaluated.
    assert len(pd.read_parquet(folder / "completions/eval_completions_00000.parquet")) == 4


def test_metrics_of_completions_are_those_of_all_ranks(ranks):
    for rank in ranks:
        assert rank["sampled"].evaluated["eval_num_completions"] == 4


@pytest.mark.slow
def test_all_processes_end_when_one_has_no_scores(tmp_path, padded_student_path, teacher_path):
    run_two_ranks(padded_student_path, teacher_path, str(tmp_path), module="tests.training.two_ranks_served")
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("Another process has no scores of the teacher: POST")
    assert second.startswith("POST http://127.0.0.1:")
    assert "2 steps that are done are saved" in first and "2 steps that are done are saved" in second
    assert {"rng_state_0.pth", "rng_state_1.pth", "trainer_state.json"} <= {
        path.name for path in (tmp_path / "checkpoint-2").iterdir()
    }


def test_no_process_waits_for_one_that_failed(tmp_path):
    run_two_ranks(str(tmp_path), module="tests.training.two_ranks_failing")
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    full = "OSError: no space left"
    assert second == {"disk full": full, "server away": "ServerError: away", "both": full}
    # Only with a `ServerError` does it save a checkpoint, for which all processes are needed.
    told = f"ProcessError: Another process has no scores and ends with {full}"
    assert first == {
        "disk full": told,
        "server away": "ServerError: Another process has no scores: away",
        "both": told,
    }
