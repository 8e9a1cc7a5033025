"""Runs whose teacher's server goes away: it comes back, another one is left, or nobody is."""

import logging
import time
from collections import Counter
from threading import Timer

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from trl_xtok import CrossTokenizerGKDTrainer
from trl_xtok.errors import ServerError


class Leave(TrainerCallback):
    """Closes the server after a step, and may come back."""

    def __init__(self, server: ModelServer, step: int, back_after: float | None = None):
        self._server, self._step, self._back_after = server, step, back_after
        self.second: ModelServer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._step:
            self._server.close()
            if self._back_after is not None:
                self._timer = Timer(self._back_after, self.come_back)
                self._timer.start()

    def come_back(self):
        server = self._server
        self.second = ModelServer(server._model, server._tokenizer, port=server.port)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def run(served):
    def train(*callbacks, resume=None, **changes):
        torch.manual_seed(3)
        arguments = {"peft_config": LoraConfig(r=2, lora_dropout=0.2), "callbacks": list(callbacks)}
        trainer = served(arguments=arguments, max_steps=4, disable_dropout=False, max_new_tokens=4, **changes)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    return train


def test_a_run_waits_for_a_server_and_ends_as_if_nothing_had_been(run, server, caplog):
    straight = run()
    expected = sorted(server.scored)
    server.scored.clear()
    leave = Leave(server, step=2, back_after=0.5)
    with caplog.at_level(logging.WARNING):
        survived = run(leave)
    try:
        assert "Trying again for 240 seconds" in caplog.text
        assert all(torch.equal(straight[name], weight) for name, weight in survived.items())
        assert leave.second is not None
        assert sorted(server.scored + leave.second.scored) == expected, "nothing was lost or scored twice"
    finally:
        leave.second.close()


def test_a_run_goes_on_with_the_replica_that_is_left(run, server, teacher, caplog):
    straight = run()
    expected, probe = Counter(server.scored), server.scored[0]
    server.scored.clear()
    with ModelServer(teacher, real_tokenizers.mistral1()) as second:
        survived = run(Leave(server, step=2), url=[server.url, second.url])
        assert all(torch.equal(straight[name], weight) for name, weight in survived.items())
        # Each is asked for a score at the start.
        assert Counter(server.scored + second.scored) == expected + Counter([probe])
    assert "What it was asked goes to another server" in caplog.text


def test_a_step_that_failed_in_its_midst_is_done_again_with_the_same_dropout(run, monkeypatch):
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    straight = run(**changes)
    take, taken = CrossTokenizerGKDTrainer._take_scores, []

    def fail(trainer, batches):
        taken.append(trainer.state.global_step)
        if taken.count(2) == 2:
            raise ServerError("It is gone.")
        take(trainer, batches)

    with monkeypatch.context() as patched, pytest.raises(ServerError, match="gone"):
        patched.setattr(CrossTokenizerGKDTrainer, "_take_scores", fail)
        run(**changes)
    resumed = run(resume=True, **changes)
    assert all(torch.equal(straight[name], weight) for name, weight in resumed.items())


def test_a_trainer_that_trains_again_after_half_a_step_does_not_count_it(served, monkeypatch):
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1}
    straight, again = served(**sizes), served(**sizes)
    straight.train()
    take, taken = again._take_scores, []

    def fail(batches):
        taken.append(batches)
        if len(taken) == 2:
            raise ServerError("It is gone.")
        take(batches)

    monkeypatch.setattr(again, "_take_scores", fail)
    with pytest.raises(ServerError, match="gone"):
        again.train()
    again.train()
    (first, _), (second, _) = (trainer.state.log_history for trainer in (straight, again))
    timed = [name for name in first if "time" in name]
    assert {name: second[name] for name in first if name not in timed} == pytest.approx(
        {name: value for name, value in first.items() if name not in timed}
    )


class Stop(TrainerCallback):
    """Ends the run between two micro-batches."""

    def on_substep_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_a_run_that_ends_between_micro_batches_asks_for_nothing_more(served, server):
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "generation_batch_size": 4}
    trainer = served(arguments={"callbacks": [Stop()]}, teacher_server_max_concurrency=1, **sizes)
    trainer.teacher.scorer.batch_size, server.delay = 1, 0.3
    probed = len(server.requests)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    time.sleep(1.0)
    # The second one was under way.
    assert len(server.requests) == probed + 2


def test_a_run_without_its_server_is_saved_and_can_go_on(run, server, teacher, tmp_path):
    straight = run()
    with pytest.raises(ServerError, match=r"was not answered within 0.3 seconds") as caught:
        run(Leave(server, step=2), teacher_server_timeout=0.3)
    assert "2 steps that are done are saved" in caught.value.__notes__[0]
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").exists()
    with ModelServer(teacher, real_tokenizers.mistral1(), port=server.port):
        resumed = run(resume=True)
    assert all(torch.equal(straight[name], weight) for name, weight in resumed.items())
