"""A served teacher is asked for the scores of a completion while others are still being written, to the same step."""

import time
from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests import real_tokenizers
from tests.serving.model_server import ModelServer, choice
from tests.serving.stub_server import Reply, StubServer
from tests.training.engine_server import EngineServer, restarting
from tests.training.fixed_rollouts import whole_step, without_times
from tests.training.runs import logged, parameters_of
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.errors import ServerError
from trl_xtok.serving.models import ServedModel
from trl_xtok.serving.scores import ServedScorer
from trl_xtok.serving.server import VLLMServer
from trl_xtok.training.advantages import credit_tokens
from trl_xtok.training.objective import Objective
from trl_xtok.training.served_teacher import ServedTeacher
from trl_xtok.training.teachers import LocalTeacher


class ScoringServer(ModelServer):
    """Says when it was asked for the first scores."""

    def __init__(self, *args):
        self.asked = Event()
        super().__init__(*args)

    def _score(self, sequences):
        # The trainer scores three tokens when it starts.
        if len(self.requests) > 3:
            self.asked.set()
        return super()._score(sequences)


@pytest.fixture
def scoring(teacher_path):
    with ScoringServer(AutoModelForCausalLM.from_pretrained(teacher_path), real_tokenizers.mistral1()) as server:
        yield server


def assert_each_once(server: ModelServer, completions: int) -> None:
    # The first one is the probe.
    assert len(server.scored) == len({*server.scored}) == completions + 1


def engine_at(url: str) -> dict[str, Any]:
    address = {"vllm_mode": "server", "vllm_weight_sync": "reload", "vllm_server_base_url": url}
    return {"use_vllm": True, "vllm_server_timeout": 20.0, **address}


def ask_late(trainer) -> None:
    """Have it ask when all completions are written."""
    roll_out = trainer._roll_out
    trainer._roll_out = lambda prompts, on_written: roll_out(prompts, lambda written: None)


@pytest.mark.parametrize("size", [1, 3])
def test_the_step_is_the_same_with_and_without_a_server_asked_early_and_late(make_trainer, scoring, size):
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "generation_batch_size": size}
    logs, weights = {}, {}
    for name in ("local", "early", "late"):
        torch.manual_seed(0)
        trainer = make_trainer(teacher_server_url=None if name == "local" else scoring.url, **settings)
        if name == "late":
            ask_late(trainer)
        scoring.scored.clear()
        trainer.train()
        logs[name] = [without_times(log) for log in logged(trainer)]
        weights[name] = parameters_of(trainer.model)
        if name != "local":
            # The probe is gone already.
            assert len(scoring.scored) == len({*scoring.scored}) == trainer.teacher.scorer.requested == 8
    assert logs["early"] == logs["late"]
    assert all(weight.equal(weights["late"][name]) for name, weight in weights["early"].items())
    for local, served in zip(logs["local"], logs["early"], strict=True):
        assert served == pytest.approx(local, abs=1e-4)


def test_scores_are_asked_for_while_completions_are_generated(make_trainer, scoring, monkeypatch):
    trainer = make_trainer(teacher_server_url=scoring.url, generation_batch_size=1)
    generate, waited = trainer.model.generate, []

    def write(*args, **kwargs):
        # The second of two is not written before the first is being scored.
        waited.append(scoring.asked.wait(20) if waited else None)
        return generate(*args, **kwargs)

    monkeypatch.setattr(trainer.model, "generate", write)
    trainer.train()
    assert waited == [None, True]
    assert_each_once(scoring, 2)


def test_a_micro_batch_is_trained_on_while_the_next_one_waits_for_its_scores(make_trainer, scoring, monkeypatch):
    """The server has no answer for the second of two micro-batches before the first has its gradients."""
    trainer = make_trainer(teacher_server_url=scoring.url, gradient_accumulation_steps=2, generation_batch_size=4)
    answer, backward, trained, in_time = scoring.answer, trainer.accelerator.backward, Event(), []
    ask_late(trainer)
    # One completion after the other.
    trainer.teacher.scorer.batch_size = trainer.teacher.scorer.max_concurrency = 1

    def wait(request):
        if len(in_time) == 3:
            assert trained.wait(20)
        in_time.append(trained.is_set())
        return answer(request)

    def learn(*args, **kwargs):
        backward(*args, **kwargs)
        trained.set()

    scoring.answer = wait
    monkeypatch.setattr(trainer.accelerator, "backward", learn)
    trainer.train()
    assert (len(in_time), in_time[3]) == (4, True)


def test_what_is_lost_in_the_midst_of_a_step_ends_it_there(make_trainer, scoring, monkeypatch):
    """The first micro-batch of the second step was trained on; the checkpoint is that of the first step."""
    trainer = make_trainer(teacher_server_url=scoring.url, gradient_accumulation_steps=2, max_steps=2)
    backward, answer, learned = trainer.accelerator.backward, scoring.answer, []
    begun = Event()
    ask_late(trainer)
    # The probe is gone already.
    scoring.scored.clear()
    trainer.teacher.scorer.batch_size = trainer.teacher.scorer.max_concurrency = 1

    def learn(*args, **kwargs):
        backward(*args, **kwargs)
        learned.append(None)
        if len(learned) == 3:
            begun.set()

    def refuse(request):
        # The last of eight completions.
        if len(scoring.scored) < 7:
            return answer(request)
        assert begun.wait(20), learned
        return Reply({"error": "no key"}, 401)

    scoring.answer = refuse
    monkeypatch.setattr(trainer.accelerator, "backward", learn)
    with pytest.raises(ServerError, match="401") as error:
        trainer.train()
    assert "The 1 steps that are done are saved in" in error.value.__notes__[0]
    assert len(learned) == 3
    whole = parameters_of(trainer.model)
    scoring.answer = answer
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2
    assert not all(weight.equal(whole[name]) for name, weight in parameters_of(trainer.model).items())


def test_what_a_reply_has_no_number_for_is_dropped_and_stays_in_the_count(make_trainer, scoring):
    """By that count the loss was divided already for what came before."""
    serve, seen = scoring.answer, []

    def without_one(request):
        reply = serve(request)
        for each in reply.body["choices"]:
            each["prompt_logprobs"][-5] = None
        return reply

    for answer in (serve, without_one):
        torch.manual_seed(0)
        trainer = make_trainer(teacher_server_url=scoring.url)
        scoring.answer = answer
        (inputs,), trained = whole_step(trainer, PROMPTS[:2], 2)
        batch = inputs["micro_batch"]
        loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=trained)
        credited = credit_tokens(trainer._student_scores(trainer.model, batch), batch, trainer.args)
        assert loss.isfinite()
        assert credited.advantages[batch.chunks < 0].eq(0).all()
        seen.append((int(trained), batch.dropped["teacher"], int(batch.counts()[2])))
        scoring.answer = serve
    (trained, *whole), (same, dropped, left) = seen
    assert (whole, same) == ([0, trained], trained)
    assert dropped >= 2
    assert left == trained - dropped


@pytest.mark.parametrize("objective", ["chunk_rkl", "prefix_jsd"])
def test_a_teacher_here_begins_with_the_next_micro_batch_behind_a_backward(make_trainer, monkeypatch, objective):
    """So a device of its own is busy while the student's is; and nothing else comes of it."""
    weights, score, events = [], LocalTeacher.token_logps_and_states, []
    monkeypatch.setattr(LocalTeacher, "token_logps_and_states", lambda *args: events.append("score") or score(*args))
    for ahead in (True, False):
        torch.manual_seed(0)
        trainer = make_trainer(objective=objective, gradient_accumulation_steps=2, max_steps=2)
        if not ahead:
            monkeypatch.setattr(Objective, "score_ahead", lambda *args: None)
        step, backward = trainer.training_step, trainer.accelerator.backward
        trainer.training_step = lambda *args, step=step: (step(*args), events.append("end"))[0]
        learn = lambda *args, backward=backward, **kwargs: (backward(*args, **kwargs), events.append("learn"))  # noqa: E731
        monkeypatch.setattr(trainer.accelerator, "backward", learn)
        events.clear()
        trainer.train()
        weights.append(parameters_of(trainer.model))
        if ahead:
            assert events == ["score", "learn", "score", "end", "learn", "end"] * 2
    assert events == ["score", "learn", "end"] * 4
    assert all(weight.equal(weights[1][name]) for name, weight in weights[0].items())


def test_scores_are_asked_for_while_an_engine_writes(make_trainer, scoring, student_path):
    waited = []
    with EngineServer(student_path) as engine:
        answer = engine.answer

        def write(request):
            reply = answer(request)
            if len(engine.completions) == 2 and not waited:
                waited.append(scoring.asked.wait(20))
            return reply

        engine.answer = write
        make_trainer(teacher_server_url=scoring.url, **engine_at(engine.url)).train()
    assert waited == [True]
    assert_each_once(scoring, 2)


def test_completions_that_are_thrown_away_change_nothing(
    make_trainer, scoring, student_path, same_tokenizer_teacher_path
):
    """A server that is started again in the second step samples from another model at first."""
    logs, scored = [], []
    for at in ([], [4]):
        with ExitStack() as stack:

            def serve(path: str = same_tokenizer_teacher_path, stack: ExitStack = stack, **options) -> EngineServer:
                return stack.enter_context(EngineServer(path, **options))

            engine = serve(student_path)
            servers = restarting(serve, engine, at)
            trainer = make_trainer(
                teacher_server_url=scoring.url, max_steps=2, generation_batch_size=1, **engine_at(engine.url)
            )
            scoring.scored.clear()
            trainer.train()
        assert len(servers) == 1 + len(at)
        assert len(scoring.scored) == len({*scoring.scored}) == trainer.teacher.scorer.requested == 4 + len(at)
        logs.append([without_times(log) for log in logged(trainer)])
        scored.append({*scoring.scored})
    assert logs[1] == logs[0]
    assert scored[0] < scored[1]


def test_rows_that_fill_up_a_batch_are_not_asked_for(make_trainer, scoring, monkeypatch):
    trainer = make_trainer(teacher_server_url=scoring.url, arguments={"eval_dataset": prompt_dataset(PROMPTS[:2])})
    monkeypatch.setattr(trainer, "_rows_that_count", lambda inputs: 1)
    trainer.evaluate()
    assert_each_once(scoring, 1)


def test_what_failed_while_a_step_was_interrupted_is_no_failure_of_the_next(make_trainer, scoring, monkeypatch):
    trainer = make_trainer(teacher_server_url=scoring.url, generation_batch_size=1)
    generate, serve, refused, written = trainer.model.generate, scoring.answer, Event(), []

    def refuse(request):
        refused.set()
        return Reply({"error": "no key"}, 401)

    def write(*args, **kwargs):
        if len(written) == 1:
            assert refused.wait(20)
            written.append(None)
            raise KeyboardInterrupt
        written.append(generate(*args, **kwargs))
        return written[-1]

    monkeypatch.setattr(trainer.model, "generate", write)
    scoring.answer = refuse
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    scoring.answer = serve
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.fixture
def teacher():
    """A teacher that is asked by one request at a time, and the server that it is behind, which refuses everything."""

    def refuse(request):
        return Reply({"error": "no key"}, 401, delay=0.2)

    with StubServer(answer=refuse) as stub:
        scorer = ServedScorer([VLLMServer(stub.url, deadline=2.0)], "teacher", max_concurrency=1)
        config = PreTrainedConfig(vocab_size=100, max_position_embeddings=50)
        yield ServedTeacher(scorer, ServedModel("teacher", None, 50), config), stub


def test_after_a_failure_nothing_more_is_asked(teacher):
    teacher, stub = teacher
    for step in (1, 2):
        teacher.forget()
        with pytest.raises(ServerError, match="401"), teacher.on_device():
            for token in range(5):
                teacher.expect([[1]], [[token]])
            teacher.token_logps([[1]], [[0]])
        assert len(stub.requests) == step


def test_a_step_that_ends_in_the_midst_sends_no_more_requests(teacher):
    teacher, stub = teacher
    asked = Event()

    def answer(request):
        asked.set()
        return Reply({"choices": [choice(i, ids, [-1.0]) for i, ids in enumerate(request.json["prompt"])]}, delay=0.2)

    stub.answer = answer
    teacher.expect([[1]] * 80, [[token] for token in range(80)])
    assert asked.wait(20)
    teacher.forget()
    time.sleep(1.0)
    # Eight completions go into one request.
    assert len(stub.requests) <= 2


def test_a_request_that_is_refused_after_its_step_is_not_split(teacher):
    teacher, stub = teacher
    asked, go_on, refused = Event(), Event(), Event()

    def answer(request):
        asked.set()
        go_on.wait(20)
        refused.set()
        return Reply({"error": "too long"}, 400)

    stub.answer = answer
    teacher.expect([[1]] * 8, [[token] for token in range(8)])
    assert asked.wait(20)
    teacher.forget()
    go_on.set()
    assert refused.wait(20)
    time.sleep(0.3)
    assert len(stub.requests) == 1


def test_a_request_that_fails_after_its_step_is_forgotten(teacher):
    teacher, stub = teacher
    asked, go_on = Event(), Event()

    def answer(request):
        (ids,) = request.json["prompt"]
        if ids[-1] == 2:
            asked.set()
            go_on.wait(20)
            return Reply({"error": "no key"}, 401)
        return Reply({"choices": [choice(0, ids, [-1.0])]})

    stub.answer = answer
    teacher.expect([[1]], [[2]])
    assert asked.wait(20)
    teacher.forget()
    go_on.set()
    assert teacher.token_logps([[1]], [[3]]).tolist() == [-1.0]
