"""A server of the standard library on this machine that answers what a test says."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    """What was asked: the path, the headers, and the JSON if there was any."""

    path: str
    headers: dict[str, str]
    json: Any


@dataclass(frozen=True)
class Reply:
    """What is answered: JSON or bytes, after `delay` seconds, `drop` seconds before each byte; `declared` bytes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: float = 0.0
    declared: int | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class StubServer:
    """Listens on a free port of the loopback interface, or on `port`.

    Attributes:
        answer: Called for each request, in a thread of its own.
        requests: What was asked so far.
        most_at_once: The most requests that were being answered at the same time.
    """

    def __init__(self, port: int = 0, answer: Callable[[Request], Reply] = lambda request: Reply(b"", 404)):
        self.answer = answer
        self.requests: list[Request] = []
        self.most_at_once, self._now, self._lock, self._closed = 0, 0, threading.Lock(), False
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else each answer waits 40 ms for an acknowledgement.
            disable_nagle_algorithm = True

            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, payload: Any) -> None:
                if stub._closed:
                    # Connections that are open outlive the server.
                    self.close_connection = True
                    return
                with stub._counting():
                    request = Request(self.path, dict(self.headers), payload)
                    with stub._lock:
                        stub.requests.append(request)
                    reply = stub.answer(request)
                    time.sleep(reply.delay)
                # A client that gave up is not there any more.
                with suppress(OSError):
                    self.send(reply)

            def send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                declared = len(reply.content) if reply.declared is None else reply.declared
                self.send_header("Content-Length", str(declared))
                self.end_headers()
                step = 1 if reply.drop else len(reply.content) or 1
                for start in range(0, len(reply.content), step):
                    time.sleep(reply.drop)
                    self.wfile.write(reply.content[start : start + step])
                self.close_connection = declared != len(reply.content)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            # 64 clients may come at once.
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hung up is what some tests are about."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _counting(self):
        return _Counting(self)

    def close(self) -> None:
        self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self._closed:
            self.close()


class _Counting:
    def __init__(self, stub: StubServer):
        self._stub = stub

    def __enter__(self):
        with self._stub._lock:
            self._stub._now += 1
            self._stub.most_at_once = max(self._stub.most_at_once, self._stub._now)

    def __exit__(self, *_):
        with self._stub._lock:
            self._stub._now -= 1
