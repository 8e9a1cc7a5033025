"""As much of the Hub's HTTP interface as an upload needs, on the loopback device; keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Accepts every upload.

    Attributes:
        repositories: What was to be created.
        commits: Message and files of each commit, in order.
        tokens: The tokens that came with requests.
        unknown: Requests that are not understood; there should be none.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: list[dict[str, Any]] = []
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.tokens: set[str | None] = set()
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers["Authorization"])
        if self.path == "/api/repos/create":
            self.server.repositories.append(asked := json.loads(body))
            self._answer({"url": f"{self.server.url}/{asked['organization']}/{asked['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            # Large files too are to come with the commit.
            files = [{"path": file["path"]} for file in json.loads(body)["files"]]
            self._answer({"files": [file | {"uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            (message,) = [line["value"]["summary"] for line in lines if line["key"] == "header"]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.commits.append((message, {file["path"]: base64.b64decode(file["content"]) for file in files}))
            oid = f"{len(self.server.commits):040}"
            repository = self.path.removeprefix("/api/models").partition("/commit/")[0]
            self._answer({"commitUrl": f"{self.server.url}{repository}/commit/{oid}", "commitOid": oid})
        else:
            self._refuse()

    def do_GET(self) -> None:
        self._refuse()

    def _refuse(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self.send_error(404)

    def _answer(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def hub() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
