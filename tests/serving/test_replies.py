"""What a server may answer to a request for scores: a clear error or a missing value, but never a wrong one."""

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.model_server import choice
from tests.serving.stub_server import Reply, StubServer
from trl_xtok.errors import ServerError
from trl_xtok.serving.scores import score
from trl_xtok.serving.server import VLLMServer


SENT = [[5, 6, 7], [8, 9]]
LOGPS = [[-1.5, -0.25], [-3.0]]
CHOICES = [choice(0, SENT[0], LOGPS[0]), choice(1, SENT[1], LOGPS[1])]
GOOD = {"id": "cmpl-1", "model": "teacher", "choices": CHOICES}

GONE = object()
WRONG = {
    "left out": GONE,
    "null": None,
    "true": True,
    "text": "-1.5",
    "markup": "<script>alert(1)</script>",
    "minus one": -1,
    "half": 0.5,
    "huge": 1e300,
    "huge and negative": -1e300,
    "an integer of 400 digits": 10**400,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "empty list": [],
    "nested list": [[[]]],
    "empty object": {},
    "another object": {"logit": -1.0},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something could be wrong."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*path, name))


def changed(path: tuple[Any, ...], wrong: Any) -> Any:
    reply = copy.deepcopy(GOOD)
    if not path:
        return wrong
    holder = reply
    for name in path[:-1]:
        holder = holder[name]
    if wrong is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = wrong
    return reply


MALFORMED = [
    pytest.param(path, wrong, id=f"{'.'.join(map(str, path)) or 'all'} is {name}")
    for path in places(GOOD)
    # Nobody reads what the server itself wrote.
    if not {"text", "finish_reason", "rank", "id", "model"} & {*path}
    for name, wrong in WRONG.items()
    if path or wrong is not GONE
]


@pytest.fixture(scope="module")
def stub():
    with StubServer() as server:
        yield server


@pytest.fixture(scope="module")
def ask(stub):
    client = VLLMServer(stub.url, timeout=0.3, deadline=0.3)

    def answered_with(reply: Reply) -> list[list[float]]:
        stub.answer = lambda request: reply
        return score(client, "teacher", SENT)

    return answered_with


def test_the_reply_that_the_others_are_made_of_is_read(ask):
    assert ask(Reply(GOOD)) == LOGPS


def test_there_are_more_than_two_hundred():
    assert len(MALFORMED) > 200


@pytest.mark.parametrize(("path", "wrong"), MALFORMED)
def test_a_malformed_reply_is_an_error_or_a_missing_value(ask, path, wrong):
    try:
        scores = ask(Reply(changed(path, wrong)))
    except ServerError as error:
        assert 40 < len(str(error)) < 1000
        return
    right = copy.deepcopy(LOGPS)
    if path[-1:] == ("logprob",) and wrong == -1:
        # Nothing is wrong with that.
        right[path[1]][path[3] - 1] = -1.0
    found = [value for row in scores for value in row]
    expected = [value for row in right for value in row]
    assert [len(row) for row in scores] == [2, 1]
    assert all(math.isnan(a) or a == b for a, b in zip(found, expected, strict=True))
    # The first id has no log-prob, so nobody reads what stands there.
    assert found == expected or path[2:4] != ("prompt_logprobs", 0)


def test_choices_are_put_in_order(ask):
    assert ask(Reply({"choices": GOOD["choices"][::-1]})) == LOGPS


@pytest.mark.parametrize("value", [0.5, -9999.0, -1e9, math.nan, -math.inf, math.inf, None, 10**400])
def test_what_is_no_log_prob_is_missing_and_the_rest_is_not(ask, value):
    reply = changed(("choices", 0, "prompt_logprobs", 1, "6", "logprob"), value)
    (first, second), third = ask(Reply(reply))
    assert math.isnan(first)
    assert (second, third) == (-0.25, LOGPS[1])


def test_a_log_prob_above_zero_by_rounding_is_zero(ask):
    reply = changed(("choices", 0, "prompt_logprobs", 1, "6", "logprob"), 2e-7)
    assert ask(Reply(reply))[0] == [0.0, -0.25]


def test_a_more_likely_token_is_not_taken_for_the_one_asked_for(ask):
    reply = changed(("choices", 0, "prompt_logprobs", 1), {"42": {"logprob": -0.1, "rank": 1}})
    assert math.isnan(ask(Reply(reply))[0][0])
    reply["choices"][0]["prompt_logprobs"][1]["6"] = {"logprob": -1.5, "rank": 7}
    assert ask(Reply(reply)) == LOGPS


WHOLE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply({**GOOD, "choices": [*GOOD["choices"], GOOD["choices"][0]]}), "choices with `index`"),
        (Reply({**GOOD, "choices": [GOOD["choices"][0]] * 2}), "choices with `index`"),
        (Reply(changed(("choices", 0, "prompt_token_ids"), [5, 6, 8])), "other ids.*the first difference at 2"),
        (Reply(changed(("choices", 0, "prompt_token_ids"), [5, 6, 7, 8])), "4 instead of 3"),
        (Reply(changed(("choices", 0, "prompt_token_ids"), [])), "0 instead of 3"),
        (Reply(changed(("choices", 0, "prompt_logprobs"), [None])), "1 `prompt_logprobs` for 3 ids"),
        (Reply(b""), "no list of `choices`: None"),
        (Reply(b"<html><h1>502 Bad Gateway</h1></html>"), "not JSON.*502 Bad Gateway"),
        (Reply(WHOLE[:-10]), "not JSON"),
        (Reply(WHOLE + b"}"), "not JSON"),
        (Reply(b"\xff\xfe\x00"), "not JSON"),
        (Reply(b"[" * 100_000), "not JSON.*RecursionError"),
        (Reply(b'{"choices": ' + b"1" * 5000 + b"}"), "not JSON"),
        (Reply(WHOLE, declared=len(WHOLE) + 9), "RemoteProtocolError"),
        (Reply(b"not gzip", headers={"Content-Encoding": "gzip"}), "no readable answer"),
        (Reply(WHOLE, 204), "no list of `choices`"),
        (Reply(WHOLE, 301, {"Location": "/elsewhere"}), "status 301"),
        (Reply(b"<html>busy</html>", 503), "status 503: '<html>busy"),
        (Reply(b'{"detail": "no"}', 401), "status 401"),
        (Reply(b"x" * 100_000, 404), "status 404: 'xxx"),
        (Reply(b"\x1b[31mred\x07", 400), r"status 400: '\\x1b"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_no_reply_is_an_error(ask, reply, says):
    with pytest.raises(ServerError, match=f"(?s){says}") as caught:
        ask(reply)
    assert len(str(caught.value)) < 1000
