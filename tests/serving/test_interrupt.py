"""Ctrl-C while a server that does not answer is waited for: the process ends at once."""

import signal
import subprocess
import sys
import time
from threading import Event

import pytest

from tests.serving.stub_server import Reply, Request, StubServer


# Who starts the tests in the background may have had the signal ignored, which processes inherit.
CONNECT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from trl_xtok.serving.completions import CompletionServer, Sampling
from trl_xtok.serving.scores import Completion, ServedScorer
from trl_xtok.serving.server import VLLMServer
servers = [VLLMServer(url, timeout=60.0, deadline=120.0) for url in {urls}]
"""
SCORE = "ServedScorer(servers, 'model').scores([Completion((number, 1, 2), 1) for number in range(40)])"
SAMPLE = "CompletionServer(servers[0], Sampling(1.0, 4, frozenset({1}), 9)).sample([[1, 2]] * 9, range(9))"


@pytest.mark.parametrize("status", [None, 503], ids=["no answer", "status 503"])
@pytest.mark.parametrize(
    ("does", "replicas"), [(SCORE, 1), (SCORE, 2), (SAMPLE, 1)], ids=["scores", "scores of two", "completions"]
)
def test_nothing_is_waited_for(does, status, replicas):
    asked, ends = Event(), Event()

    def answer(request: Request) -> Reply:
        if request.path == "/v1/models":
            return Reply({"data": [{"id": "model"}]})
        asked.set()
        if status is None:
            ends.wait(60)
        return Reply(b"", status or 200)

    with StubServer(answer=answer) as first, StubServer(answer=answer) as second:
        code = CONNECT.format(urls=[first.url, second.url][:replicas]) + does
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
            assert asked.wait(60)
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            try:
                _, said = process.communicate(timeout=30)
            finally:
                process.kill()
                ends.set()
    assert time.monotonic() - start < 10
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0
