"""The HTTP client, against a server of the standard library on this machine."""

import logging
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest

from tests.serving.stub_server import Reply, StubServer
from trl_xtok.errors import ConfigError, ServerError
from trl_xtok.serving.server import VLLMServer


@pytest.fixture
def stub():
    with StubServer() as server:
        yield server


def client(stub: StubServer, **times: float) -> VLLMServer:
    return VLLMServer(stub.url, **{"timeout": 5.0, "deadline": 5.0} | times)


def test_json_goes_there_and_comes_back(stub):
    stub.answer = lambda request: Reply({"path": request.path, "got": request.json})
    assert client(stub).get("/v1/models") == {"path": "/v1/models", "got": None}
    assert client(stub).post("/x", {"ids": [1, 2]}) == {"path": "/x", "got": {"ids": [1, 2]}}


def test_an_empty_answer_is_none(stub):
    stub.answer = lambda request: Reply(b"")
    assert client(stub).get("/health") is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(stub, status, caplog):
    replies = [Reply(b"busy", status), Reply(b"busy", status), Reply({"ok": 1})]
    stub.answer = lambda request: replies.pop(0)
    assert client(stub).get("/x") == {"ok": 1}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_refusal_is_not_tried_again(stub):
    stub.answer = lambda request: Reply({"error": {"message": "too long"}}, 400)
    with pytest.raises(ServerError, match=r"status 400.*too long") as caught:
        client(stub).post("/v1/completions", {})
    assert caught.value.status == 400
    assert len(stub.requests) == 1


def test_a_redirection_is_not_followed(stub):
    stub.answer = lambda request: Reply(b"", 307, {"Location": "http://127.0.0.1:9/"})
    with pytest.raises(ServerError, match="307"):
        client(stub).get("/x")


def test_a_server_that_is_away_is_waited_for(stub):
    stub.answer = lambda request: Reply({"ok": 1})
    port = stub.port
    stub.close()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(VLLMServer(f"http://127.0.0.1:{port}", deadline=20.0).get, "/x")
        with StubServer(port, lambda request: Reply({"ok": 2})):
            assert answer.result() == {"ok": 2}


def test_a_server_that_stays_away_is_an_error_at_the_deadline(stub):
    stub.close()
    start = monotonic()
    with pytest.raises(ServerError, match=r"within 0.5 seconds; the last of \d+ tries ended with ConnectError"):
        client(stub, deadline=0.5).get("/x")
    assert monotonic() - start < 1.5


def test_a_server_that_hangs_is_an_error_at_the_deadline(stub):
    stub.answer = lambda request: Reply({"late": 1}, delay=1.0)
    with pytest.raises(ServerError, match="ReadTimeout"):
        client(stub, timeout=0.2, deadline=0.5).get("/x")


def test_an_answer_in_drops_is_an_error_at_the_deadline(stub):
    stub.answer = lambda request: Reply(b'{"a": 1}' + b" " * 20, drop=0.1)
    with pytest.raises(ServerError, match="not complete"):
        client(stub, timeout=0.3, deadline=0.6).get("/x")


def test_the_key_is_sent_and_never_shown(stub, monkeypatch, caplog):
    monkeypatch.setenv("VLLM_API_KEY", "sk-very-secret")
    # An error shows the beginning of what was answered.
    replies = [Reply(b"x" * 288 + b"Bearer sk-very-secret", status) for status in (503, 401)]
    stub.answer = lambda request: replies.pop(0)
    server = client(stub)
    with pytest.raises(ServerError) as caught:
        server.get("/x")
    assert stub.requests[0].headers["Authorization"] == "Bearer sk-very-secret"
    assert "sk-" not in str(caught.value) + caplog.text + repr(server)


@pytest.mark.parametrize(
    ("name", "own"), [("books", "sk-books"), ("my-code.v2", "sk-bo"), ("poems", "sk-all"), ("", "sk-all")]
)
def test_a_key_of_its_own_is_sent_and_none_is_shown(stub, monkeypatch, name, own):
    monkeypatch.setenv("VLLM_API_KEY", "sk-all")
    monkeypatch.setenv("VLLM_API_KEY_BOOKS", "sk-books")
    monkeypatch.setenv("VLLM_API_KEY_MY_CODE_V2", "sk-bo")
    stub.answer = lambda request: Reply(b"not sk-all, sk-books or sk-bo", 401)
    with pytest.raises(ServerError, match=r"not \*\*\*, \*\*\* or \*\*\*'"):
        VLLMServer(stub.url, name=name).get("/x")
    assert stub.requests[0].headers["Authorization"] == f"Bearer {own}"


def test_a_key_with_a_backslash_is_not_shown(stub, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk\\very'secret")
    stub.answer = lambda request: Reply(b"not " + request.headers["Authorization"].encode(), 401)
    with pytest.raises(ServerError, match=r"not Bearer \*\*\*"):
        client(stub).get("/x")


def test_a_key_of_its_own_may_be_none(stub, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-all")
    monkeypatch.setenv("VLLM_API_KEY_BOOKS", "")
    stub.answer = lambda request: Reply({})
    VLLMServer(stub.url, name="books").get("/x")
    assert "Authorization" not in stub.requests[0].headers


def test_a_key_that_cannot_be_sent_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-sécret")
    with pytest.raises(ConfigError) as caught:
        VLLMServer("http://127.0.0.1:1")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://host", "", "http://", "http://host:port", None, "http://h/?a=1"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="not the address of a server"):
        VLLMServer(url)


@pytest.mark.parametrize("url", ["http://me:hunter2@host", "http://me:hunter2@host:port"])
def test_a_password_in_the_address_is_refused_unseen(url):
    with pytest.raises(ConfigError, match="user or a password") as caught:
        VLLMServer(url)
    assert "hunter2" not in str(caught.value)


def test_the_path_of_the_api_may_stand_at_the_end_of_the_address():
    assert VLLMServer("http://127.0.0.1:8000/v1/").url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_proxy_is_not_asked_for_this_machine(stub, monkeypatch, host):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    stub.answer = lambda request: Reply({"ok": 1})
    assert VLLMServer(f"http://{host}:{stub.port}", deadline=1.0).get("/x") == {"ok": 1}
