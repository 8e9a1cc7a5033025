"""A teacher behind a real vLLM server: the step of a local one, a server that is killed, and its speed."""

import time
from collections import Counter
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import TrainerCallback

from tests.serving.vllm_server import VLLMProcess, vllm_server
from tests.training.fixed_rollouts import rollouts, train_one_step, without_times
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.serving.scores import Completion, ServedScorer, score
from trl_xtok.serving.server import VLLMServer


pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def smollm2() -> str:
    return str(demo_model_path("smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    with vllm_server(smollm2, tmp_path_factory.mktemp("vllm")) as process:
        yield process


def model_name(server: VLLMProcess) -> str:
    return VLLMServer(server.url).get("/v1/models")["data"][0]["id"]


def test_a_step_is_that_with_a_local_teacher(qwen_teacher_path, smollm2, server, tmp_path):
    """The student is the tiny model: its tokens are not those of the teacher."""
    models = qwen_teacher_path, smollm2, str(tmp_path), None
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_new_tokens": 24}
    local, served = (
        train_one_step(*models, prompts=PROMPTS, **settings, **where)
        for where in ({}, {"teacher_server_url": server.url, "teacher_server_timeout": 600.0})
    )
    assert local.sampled == served.sampled
    assert without_times(served.logged) == pytest.approx(without_times(local.logged), abs=1e-4, rel=1e-4)
    assert max(gradient.abs().max() for gradient in local.gradients.values()) > 1e-2
    differences, losses = [], (local.logged["loss"], served.logged["loss"])
    for name, gradient in local.gradients.items():
        torch.testing.assert_close(served.gradients[name], gradient, atol=1e-4, rtol=1e-4)
        differences.append((served.gradients[name] - gradient).abs().max().item())
    print(f"largest difference of a gradient: {max(differences):.1e}; losses {losses}")


def test_what_the_server_refuses_costs_nothing_else(server):
    scorer = ServedScorer([VLLMServer(server.url)], model_name(server))
    good = [Completion((5, 6, 7, 8 + row), 2) for row in range(6)]
    bad = [Completion((5, 6, 49152), 2), Completion((7,) * 1024, 1)]
    alone = scorer.scores(good)
    together = scorer.scores([*good[:3], *bad, *good[3:]])
    assert together[:3] + together[5:] == [pytest.approx(row, abs=1e-4) for row in alone]
    assert all(value != value for row in together[3:5] for value in row)
    assert len(scorer.scores([Completion((7,) * 1023, 1)])[0]) == 1022


class Kill(TrainerCallback):
    """Kills the server after a step, and starts it again on its port."""

    def __init__(self, server: VLLMProcess, step: int):
        self._server, self._step = server, step
        self.thread: Thread | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            self._server.kill()
            self._server.start()
            self.thread = Thread(target=self._server.wait)
            self.thread.start()


def test_a_run_survives_a_server_that_is_killed(qwen_teacher_path, smollm2, server, tmp_path, monkeypatch):
    answered: list[tuple[int, ...]] = []

    def counting(*args):
        scores = score(*args)
        answered.extend(map(tuple, args[2]))
        return scores

    monkeypatch.setattr("trl_xtok.serving.scores.score", counting)

    def run(folder: Path, *callbacks: TrainerCallback):
        torch.manual_seed(0)
        args = tiny_args(folder, teacher_server_url=server.url, teacher_server_timeout=600.0, max_steps=4)
        dataset = {"train_dataset": prompt_dataset(PROMPTS)}
        trainer = tiny_trainer(qwen_teacher_path, smollm2, args, **dataset, callbacks=list(callbacks))
        trainer.train()
        asked = Counter(answered)
        answered.clear()
        return asked, trainer.teacher.scorer.requested, {n: p.detach() for n, p in trainer.model.named_parameters()}

    straight, count, weights = run(tmp_path / "straight")
    kill = Kill(server, step=2)
    start = time.perf_counter()
    survived, count_again, weights_again = run(tmp_path / "killed", kill)
    print(f"the run with a restart of the server took {time.perf_counter() - start:.0f} s")
    assert kill.thread is not None
    kill.thread.join()
    assert (survived, count_again) == (straight, count), "nothing was lost or scored twice"
    for name, weight in weights.items():
        torch.testing.assert_close(weights_again[name], weight, atol=1e-4, rtol=1e-3)


def test_many_requests_at_once_are_faster_than_a_loop(server):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1000, 49000, (64, 128), generator=generator).tolist()
    completions = [Completion(tuple(row), 64) for row in rows]
    client, name = VLLMServer(server.url, timeout=300.0, deadline=300.0), model_name(server)

    def seconds(batch_size: int, max_concurrency: int) -> float:
        scorer = ServedScorer([client], name, batch_size=batch_size, max_concurrency=max_concurrency)
        start = time.perf_counter()
        scorer.scores(completions)
        return time.perf_counter() - start

    times = {"loop": seconds(1, 1), "64 requests": seconds(1, 64), "8 requests of 8": seconds(8, 8)}
    tokens = 64 * 128
    for name, taken in times.items():
        print(f"{name}: {taken:.1f} s, {tokens / taken:.0f} tokens/s")
    assert times["64 requests"] < times["loop"]


def test_rollouts_are_scored_as_here(server, smollm2):
    """Whatever the student writes: odd bytes, nothing, and only a stop token."""
    from transformers import AutoModelForCausalLM

    from trl_xtok.training.teachers import LocalTeacher

    completions = list(rollouts().values())
    completions = [[token for token in row if token < 49152] for row in completions]
    prompts = [[1, 2, 3]] * len(completions)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    local = LocalTeacher(model, tiny_args("unused")).token_logps(prompts, completions)
    scorer = ServedScorer([VLLMServer(server.url)], model_name(server))
    asked = [Completion((*prompt, *row), 3) for prompt, row in zip(prompts, completions, strict=True)]
    served = torch.tensor([value for row in scorer.scores(asked) for value in row])
    print(f"largest difference of a log-prob: {(served - local).abs().max():.1e}")
    torch.testing.assert_close(served, local, atol=1e-4, rtol=0)
