"""A served teacher is asked for the scores of a completion while others are still being written, to the same step."""

from threading import Event

import pytest
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.serving.stub_server import Reply, StubServer
from tests.training.engine_server import EngineServer
from tests.training.fixed_rollouts import without_times
from tests.training.runs import logged
from trl_xtok.errors import ServerError
from trl_xtok.serving.models import ServedModel
from trl_xtok.serving.scores import ServedScorer
from trl_xtok.serving.server import VLLMServer
from trl_xtok.training.served_teacher import ServedTeacher


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


@pytest.mark.parametrize("size", [1, 3])
def test_the_step_is_that_with_a_local_teacher(make_trainer, scoring, size):
    settings = {"max_steps": 2, "gradient_accumulation_steps": 2, "generation_batch_size": size}
    logs = []
    for url in (None, scoring.url):
        trainer = make_trainer(teacher_server_url=url, **settings)
        trainer.train()
        logs.append([without_times(log) for log in logged(trainer)])
    for local, served in zip(*logs, strict=True):
        assert served == pytest.approx(local, abs=1e-4)
    assert_each_once(scoring, 8)


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
        address = {"vllm_mode": "server", "vllm_weight_sync": "reload", "vllm_server_base_url": engine.url}
        make_trainer(teacher_server_url=scoring.url, use_vllm=True, **address).train()
    assert waited == [True]
    assert_each_once(scoring, 2)


def test_after_a_failure_nothing_more_is_asked():
    requests = 0

    def refuse(request):
        nonlocal requests
        requests += 1
        return Reply({"error": "no key"}, 401, delay=0.2)

    with StubServer(answer=refuse) as stub:
        scorer = ServedScorer([VLLMServer(stub.url, deadline=2.0)], "teacher")
        config = PreTrainedConfig(vocab_size=100, max_position_embeddings=50)
        teacher = ServedTeacher(scorer, ServedModel("teacher", None, 50), config)
        for token in range(5):
            teacher.expect([[1]], [[token]])
        with pytest.raises(ServerError, match="401"), teacher.on_device():
            teacher.token_logps([[1]], [[0]])
        assert requests == 1
        # The next step is another one.
        with pytest.raises(ServerError, match="401"), teacher.on_device():
            teacher.token_logps([[1]], [[0]])
        assert requests == 2
