"""What a server may answer to a request for a completion, and to one to read weights."""

import copy
from pathlib import Path

import pytest

from tests.serving.stub_server import Reply, StubServer
from trl_xtok.errors import ServerError
from trl_xtok.serving import completions
from trl_xtok.serving.completions import CompletionServer, Sampling
from trl_xtok.serving.scores import score
from trl_xtok.serving.server import VLLMServer


PROMPT = [5, 6]
GOOD = {
    "choices": [
        {
            "token_ids": [3, 4, 9],
            "prompt_token_ids": PROMPT,
            "logprobs": {"tokens": ["token_id:3", "token_id:4", "token_id:9"], "token_logprobs": [-1.0, -0.5, 0]},
            "finish_reason": "stop",
        }
    ]
}


@pytest.fixture
def stub():
    with StubServer() as server:
        server.answer = lambda request: Reply({"data": [{"id": "student"}]})
        yield server


def connect(stub: StubServer, **options: int) -> CompletionServer:
    sampling = Sampling(temperature=0.7, max_tokens=4, stop_ids=frozenset({9, 8}), vocab_size=10)
    return CompletionServer(VLLMServer(stub.url, timeout=5.0, deadline=1.0), sampling, **options)


def reply(**changes) -> dict:
    """The good reply with some of its choice changed; `None` takes a key away."""
    changed = copy.deepcopy(GOOD)
    (choice,) = changed["choices"]
    for name, value in changes.items():
        part = choice["logprobs"] if name in ("tokens", "token_logprobs") else choice
        if value is None:
            del part[name]
        else:
            part[name] = value
    return changed


def ids(*tokens: int, reason: str = "stop") -> dict:
    """A reply with these tokens."""
    names = [f"token_id:{token}" for token in tokens]
    return reply(token_ids=[*tokens], tokens=names, token_logprobs=[-1.0] * len(tokens), finish_reason=reason)


def test_sampled_ids_come_back_as_they_are(stub):
    server = connect(stub)
    stub.answer = lambda request: Reply(GOOD)
    (completion,) = server.sample([PROMPT], [17])
    assert (completion.ids, completion.logps) == ([3, 4, 9], [-1.0, -0.5, 0])
    asked = stub.requests[-1].json
    assert {name: asked[name] for name in ("prompt", "seed", "max_tokens", "temperature", "stop_token_ids")} == {
        "prompt": PROMPT,
        "seed": 17,
        "max_tokens": 4,
        "temperature": 0.7,
        "stop_token_ids": [8, 9],
    }


def test_completions_are_asked_for_together_and_come_back_in_order(stub):
    server = connect(stub, requests=4)
    stub.answer = lambda request: Reply(
        reply(prompt_token_ids=request.json["prompt"], token_ids=[request.json["seed"], 4, 9],
              tokens=[f"token_id:{request.json['seed']}", "token_id:4", "token_id:9"]),
        delay=0.02 * (request.json["seed"] == 0),
    )  # fmt: skip
    sampled = server.sample([PROMPT] * 8, range(8))
    assert [completion.ids[0] for completion in sampled] == [*range(8)]
    assert 1 < stub.most_at_once <= 4
    assert server.sample([], []) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        pytest.param([], "one choice", id="a list"),
        pytest.param(None, "one choice", id="nothing"),
        pytest.param({"choices": []}, "one choice", id="no choice"),
        pytest.param({"choices": GOOD["choices"] * 2}, "one choice", id="two choices"),
        pytest.param(reply(token_ids=None), "one choice", id="no ids"),
        pytest.param(reply(logprobs=None), "one choice", id="no log-probs"),
        pytest.param(reply(logprobs=[]), "one choice", id="log-probs of another form"),
        pytest.param(reply(prompt_token_ids=[6]), "other ids than the 2 of the prompt", id="a prompt cut off"),
        pytest.param(reply(token_ids="349"), "ids from 0 to 9", id="text for ids"),
        pytest.param(ids(3, 10, 9), "ids from 0 to 9", id="an id outside the vocabulary"),
        pytest.param(ids(3, -1, 9), "ids from 0 to 9", id="a negative id"),
        pytest.param(reply(token_ids=[3, 4.0, 9]), "ids from 0 to 9", id="a fraction"),
        pytest.param(reply(token_ids=[3, True, 9]), "ids from 0 to 9", id="a truth value"),
        pytest.param(reply(token_logprobs=[-1.0, None, 0]), "not all finite", id="a missing log-prob"),
        pytest.param(reply(token_logprobs=[-1.0, float("nan"), 0]), "not all finite", id="NaN"),
        pytest.param(reply(token_logprobs=[-1.0, -float("inf"), 0]), "not all finite", id="infinity"),
        pytest.param(reply(token_logprobs=[-1.0, 0]), "2 log-probs", id="too few log-probs"),
        pytest.param(reply(tokens=["token_id:3", "token_id:5", "token_id:9"]), "3 log-probs", id="of other tokens"),
        pytest.param(ids(), "0 tokens", id="no tokens"),
        pytest.param(ids(1, 2, 3, 4, 9), "5 tokens", id="too many tokens"),
        pytest.param(ids(3, 9, 4, 8), "at most 4 up to one of the stop", id="a stop token in the middle"),
        pytest.param(ids(3, 4, 9, reason="abort"), "end with 'abort'", id="given up by the server"),
        pytest.param(ids(3, 4, reason="length"), "after 2 of 4 tokens. Its context is too short", id="cut off"),
    ],
)
def test_an_answer_that_cannot_be_one_is_an_error(stub, answer, message):
    server = connect(stub)
    stub.answer = lambda request: Reply(answer)
    with pytest.raises(ServerError, match=message):
        server.sample([PROMPT] * 3, [1, 2, 3])


def test_an_echoed_key_is_not_shown(stub, monkeypatch):
    """Neither by the client for completions nor by that for scores."""
    monkeypatch.setenv("VLLM_API_KEY", "sk-very-secret")
    server = connect(stub)
    asked = [lambda: server.sample([PROMPT], [1]), lambda: score(VLLMServer(stub.url, deadline=1.0), "x", [PROMPT])]
    echo = {"headers": {"Authorization": "Bearer sk-very-secret"}}
    for answer in (echo, ids(3, 4, 9, reason="Bearer sk-very-secret"), {"choices": [{"index": "sk-very-secret"}]}):
        stub.answer = lambda request, answer=answer: Reply(answer)
        for ask in asked:
            with pytest.raises(ServerError) as caught:
                ask()
            assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("again", [Reply(b"", declared=9), Reply(b"", 502)], ids=["cut off", "status 502"])
def test_a_server_that_may_have_been_started_again_is_told_from_one_that_was_not(stub, again):
    server = connect(stub)
    busy, answers = Reply(b"", 429), [Reply(GOOD)]
    stub.answer = lambda request: answers.pop()
    for first, was_interrupted in ((busy, False), (again, True)):
        answers[:] = [Reply(GOOD), first]
        server.sample([PROMPT], [1])
        assert server.was_interrupted is was_interrupted
    # What reads the weights in the end has them.
    answers[:] = [Reply({"success": True}), Reply(b""), again]
    server.reload(Path("/weights"))
    assert not server.was_interrupted


@pytest.mark.parametrize("answer", [{}, {"data": []}, [], "x", None])
def test_a_server_of_another_kind_is_an_error(stub, answer):
    stub.answer = lambda request: Reply(answer)
    with pytest.raises(ServerError, match="names no model"):
        connect(stub)


def test_a_server_without_the_development_mode_is_an_error_that_says_so(stub):
    server = connect(stub)
    stub.answer = lambda request: Reply({"detail": "Not Found"}, 404)
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1") as caught:
        server.reload(Path("/weights"))
    assert caught.value.status == 404


def test_a_folder_that_the_server_cannot_read_is_named(stub):
    server = connect(stub)
    stub.answer = lambda request: Reply({"error": "Repo id must use"}, 500)
    with pytest.raises(ServerError, match=r"'/weights'.*Repo id must use.*same path"):
        server.reload(Path("/weights"))


def test_the_cache_is_emptied_after_the_weights_are_read(stub, monkeypatch):
    monkeypatch.setattr(completions, "_PAUSES", (0.0, 0.0))
    server = connect(stub)
    answers = [{"results": [None]}, {"success": False}, {"success": True}]
    stub.answer = lambda request: Reply(answers.pop(0))
    server.reload(Path("/weights"))
    asked = [request.path for request in stub.requests[1:]]
    assert asked == ["/collective_rpc", "/reset_prefix_cache", "/reset_prefix_cache"]
    stub.answer = lambda request: Reply({"success": False})
    with pytest.raises(ServerError, match="old weights"):
        server.reload(Path("/weights"))
