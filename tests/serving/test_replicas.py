"""Several servers of one model: what happens when one of them is away, slow or broken, and when all are."""

import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event, Semaphore

import pytest

from tests.serving.stub_server import Reply, Request, StubServer
from trl_xtok.errors import ServerError
from trl_xtok.serving.replicas import Replicas
from trl_xtok.serving.server import VLLMServer


Answer = Callable[[Request], Reply]


def right(request: Request) -> Reply:
    return Reply({"number": request.json["number"]})


@pytest.fixture
def stubs():
    with StubServer(answer=right) as first, StubServer(answer=right) as second:
        yield first, second


@pytest.fixture
def replicas(stubs):
    def connect(*servers: StubServer, timeout: float = 5.0, deadline: float = 10.0) -> Replicas:
        return Replicas([VLLMServer(each.url, timeout=timeout, deadline=deadline) for each in servers or stubs])

    return connect


def ask(replicas: Replicas, numbers: range, at_once: int = 4) -> None:
    """Each number has its own answer."""
    with ThreadPoolExecutor(at_once) as pool:
        answers = [*pool.map(lambda number: replicas.post("/x", {"number": number}), numbers)]
    assert answers == [{"number": number} for number in numbers]


def answered(*servers: StubServer) -> Counter[int]:
    return Counter(request.json["number"] for server in servers for request in server.requests)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_one_after_the_other_they_take_turns(stubs, replicas):
    ask(replicas(), range(10), at_once=1)
    assert [len(stub.requests) for stub in stubs] == [5, 5]


def test_a_slow_one_gets_less(stubs, replicas, caplog):
    stubs[1].answer = lambda request: Reply(right(request).body, delay=0.4)
    ask(replicas(), range(60))
    assert len(stubs[1].requests) < 20
    assert answered(*stubs) == dict.fromkeys(range(60), 1)
    assert not warnings(caplog)


def test_one_that_ends_in_the_midst_and_comes_back(stubs, replicas, caplog):
    both, port, asked = replicas(), stubs[0].port, Event()

    def answer(request: Request) -> Reply:
        if len(stubs[0].requests) == 10:
            asked.set()
        return Reply(right(request).body, delay=0.02)

    stubs[0].answer = stubs[1].answer = answer
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, both, range(100))
        assert asked.wait(20)
        stubs[0].close()
        asking.result()
    (gone,) = warnings(caplog)
    assert f"{stubs[0].url} failed with " in gone
    assert answered(*stubs) == dict.fromkeys(range(100), 1)
    with StubServer(port, right) as back:
        for start in range(200, 10000, 10):
            ask(both, range(start, start + 10))
            if len(back.requests) > 10:
                break
            time.sleep(0.1)
        back.requests.clear()
        ask(both, range(20000, 20020), at_once=1)
        assert len(back.requests) == 10
    assert [*warnings(caplog)[1:]] == [f"{stubs[0].url} answers again and gets its share of the requests."]


PROCESS = """
import time
from tests.serving.stub_server import Reply, StubServer
server = StubServer(answer=lambda request: Reply({"number": request.json["number"]}, delay=0.02))
print(server.url, flush=True)
time.sleep(60)
"""


def test_one_whose_process_is_killed(stubs, caplog):
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        both = Replicas([VLLMServer(url), VLLMServer(stubs[0].url)])
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask, both, range(200))
            while len(stubs[0].requests) < 20:
                time.sleep(0.01)
            process.kill()
            asking.result()
    (gone,) = warnings(caplog)
    assert f"{url} failed with " in gone
    assert set(answered(stubs[0]).values()) == {1}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_one_has_no_answer_to_is_asked_of_the_other(stubs, replicas, caplog, status):
    stubs[0].answer = lambda request: Reply(b"out of memory", status)
    both = replicas()
    start = time.monotonic()
    ask(both, range(40))
    assert time.monotonic() - start < 2
    assert answered(stubs[1]) == dict.fromkeys(range(40), 1)
    # Those that were under way, and a few tries.
    assert 1 <= len(stubs[0].requests) < 10
    (gone,) = warnings(caplog)
    assert f"{stubs[0].url} failed with status {status}: 'out of memory'" in gone


def full_at(places: int, seconds: float) -> Answer:
    """Answers so many at a time."""
    free = Semaphore(places)

    def take(request: Request) -> Reply:
        if not free.acquire(blocking=False):
            return Reply(b"full", 429)
        time.sleep(seconds)
        free.release()
        return right(request)

    return take


def test_full_ones_are_asked_for_less_at_a_time(stubs, replicas, caplog):
    """Each has room for two requests; none of them is away, so no time is lost with waiting for it."""
    stubs[0].answer, stubs[1].answer = full_at(2, 0.03), full_at(2, 0.03)
    start = time.monotonic()
    ask(replicas(deadline=4.0), range(200), at_once=16)
    # Four at a time take 1.5 seconds.
    assert time.monotonic() - start < 4
    refused = sum(len(stub.requests) for stub in stubs) - 200
    assert refused < 100
    assert not warnings(caplog)


def test_what_waits_for_its_turn_longer_than_the_deadline_is_answered(stubs, replicas):
    stubs[0].answer, stubs[1].answer = full_at(1, 0.3), full_at(1, 0.3)
    ask(replicas(deadline=1.0), range(16), at_once=16)
    assert {*answered(*stubs)} == {*range(16)}


def test_one_that_comes_and_goes_is_left_alone_for_a_moment_and_warned_of_once(stubs, replicas, caplog):
    """Of each three answers one is a failure."""
    for stub in stubs:
        stub.answer = lambda request, asked=stub.requests: right(request) if len(asked) % 3 else Reply(b"", 503)
    start = time.monotonic()
    ask(replicas(deadline=4.0), range(60))
    assert time.monotonic() - start < 5
    for stub in stubs:
        gone, *back = [each for each in warnings(caplog) if stub.url in each]
        assert "failed with status 503" in gone
        assert len(back) <= 1


def test_nothing_is_asked_again_after_a_stop(stubs, replicas):
    for servers in ([stubs[0]], stubs):
        for stub in stubs:
            stub.answer = lambda request: Reply(b"", 500)
        asked = replicas(*servers) if len(servers) > 1 else VLLMServer(servers[0].url, deadline=10.0)
        stop = Event()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(asked.post, "/x", {"number": 0}, stop)
            time.sleep(0.5)
            stop.set()
            start = time.monotonic()
            with pytest.raises(CancelledError):
                asking.result()
        assert time.monotonic() - start < 1
        sent = sum(len(stub.requests) for stub in stubs)
        time.sleep(0.5)
        assert sum(len(stub.requests) for stub in stubs) == sent > 0


def test_an_answer_from_before_it_went_away_does_not_bring_it_back(stubs, replicas, caplog):
    stubs[0].answer = lambda request: Reply(b"", 500) if request.json["number"] else Reply({"number": 0}, delay=0.3)
    stubs[1].answer = lambda request: Reply(right(request).body, delay=0.02)
    ask(replicas(), range(60))
    (gone,) = warnings(caplog)
    assert "failed with status 500" in gone


def test_one_that_hangs_is_asked_again_seldom(stubs, replicas):
    """Two requests at first; half a second later they are lost, and as long after that there is one as a try."""
    stubs[0].answer = lambda request: Reply(b"", delay=1.0)
    stubs[1].answer = lambda request: Reply(right(request).body, delay=0.02)
    both, start, first = replicas(timeout=0.5, deadline=1.0), time.monotonic(), 0
    while time.monotonic() - start < 1.4:
        ask(both, range(first, first + 20))
        first += 20
    assert 2 <= len(stubs[0].requests) <= 3


def test_two_that_hang_leave_time_for_a_third(stubs, replicas):
    stubs[0].answer = stubs[1].answer = lambda request: Reply(b"", delay=1.0)
    with StubServer(answer=right) as third:
        ask(replicas(*stubs, third, timeout=0.3, deadline=0.6), range(1))


def test_a_refusal_is_not_asked_of_another(stubs, replicas, caplog):
    stubs[0].answer = stubs[1].answer = lambda request: Reply({"error": {"message": "too long"}}, 400)
    with pytest.raises(ServerError, match=r"status 400.*too long") as caught:
        replicas().post("/x", {"number": 0})
    assert caught.value.status == 400
    assert len(stubs[0].requests) + len(stubs[1].requests) == 1
    assert not warnings(caplog)


def test_without_any_each_is_named_at_the_deadline(stubs, replicas):
    stubs[0].close()
    stubs[1].answer = lambda request: Reply(b"no memory", 500)
    both = replicas(timeout=0.5, deadline=1.0)
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(ServerError) as caught:
            both.post("/x", {"number": 0})
        assert 0.9 < time.monotonic() - start < 2
        assert f"within 1 seconds by any of 2 servers. Their last tries ended: {stubs[0].url} with Conn" in str(
            caught.value
        )
        assert f"{stubs[1].url} with status 500: 'no memory'" in str(caught.value)


def test_both_away_are_waited_for(stubs, replicas):
    both, port = replicas(), stubs[1].port
    for stub in stubs:
        stub.close()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, both, range(20))
        time.sleep(0.5)
        assert not asking.done()
        with StubServer(port, right) as back:
            asking.result()
    assert answered(back) == dict.fromkeys(range(20), 1)
