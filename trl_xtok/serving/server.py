"""A vLLM server, spoken to in JSON over HTTP.

A server may be restarted, or be away for a minute, in the middle of a run that takes days. So a request is sent again
until a deadline; what the server refuses, and what it answers that cannot be read, is an error at once.
"""

import ipaddress
import json
import logging
import os
import re
import time
import weakref
from concurrent.futures import CancelledError
from random import Random
from threading import Event
from typing import Any

import httpx2

from ..errors import ConfigError, ServerError


API_KEY = "VLLM_API_KEY"
# Of one reply. Scores of a million tokens take about 100 MB.
_LARGEST_REPLY = 2**28
# Seconds between tries.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
_logger = logging.getLogger(__name__)


class NoAnswer(ServerError):
    """What became of a request that may be answered another time: no answer, 429 or a status from 500."""


class VLLMServer:
    """Sends requests to one server; several threads may do so at the same time.

    An API key is read from the environment variable `VLLM_API_KEY`, or from one of its own (see `name`). Proxies that
    the environment names are used, but not for this machine.

    Args:
        url: Where it is, for example `http://127.0.0.1:8000`. `/v1` at its end may be left out.
        timeout: Seconds until a request that is not answered is sent again.
        deadline: Seconds after which a request that was sent again and again is given up.
        name: The key is that of `VLLM_API_KEY_` and this name, where there is such a variable.

    Attributes:
        url: The same, as it is shown in messages.
        deadline: The same.
        interruptions: Grows with each request to which no answer came, or one of a server that failed (5xx). A server
            that is started again does not go unnoticed by a request that is under way.

    Raises:
        ConfigError: If `url` is none, has a password in it, or the key cannot be sent.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, deadline: float = 240.0, name: str = ""):
        self.url = check_url(url)
        self._timeout, self.deadline, self.interruptions = timeout, deadline, 0
        key = _api_key(name)
        self._client = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # Who calls limits how many requests there are at a time.
            limits=httpx2.Limits(max_connections=None),
            trust_env=not _is_local(httpx2.URL(self.url).host),
        )
        # A trainer has no end at which it could close them.
        weakref.finalize(self, self._client.close)
        # Not the global generator, whose state is part of the run.
        self._random = Random()

    def get(self, path: str) -> Any:
        """The JSON that `GET path` answers; `None` for an empty answer.

        Raises:
            ServerError: If there is no usable answer before the deadline.
        """
        return self._request("GET", path, None)

    def post(self, path: str, payload: Any, stop: Event | None = None) -> Any:
        """The JSON that `POST path` answers to a payload of JSON; `None` for an empty answer.

        Args:
            path: The path.
            payload: What is sent.
            stop: Where it is set, it is not sent again.

        Raises:
            CancelledError: If `stop` was set before there was an answer.
            ServerError: If there is no usable answer before the deadline.
        """
        return self._request("POST", path, payload, stop)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def try_once(self, method: str, path: str, payload: Any, end: float) -> Any:
        """The JSON that is answered to one request; `None` for an empty answer.

        Args:
            method: `GET` or `POST`.
            path: The path.
            payload: What is sent as JSON, if anything.
            end: When it is given up, on the clock of `time.monotonic`.

        Raises:
            NoAnswer: If it may be answered another time, or by another server.
            ServerError: If it is refused, or its answer cannot be read.
        """
        what = f"{method} {self.url}{path}"
        try:
            status, body = self._send(method, path, payload, end)
        except httpx2.TransportError as error:
            self.interruptions += 1
            raise NoAnswer(without_key(f"{type(error).__name__}: {error}")) from None
        except httpx2.HTTPError as error:
            raise ServerError(without_key(f"{what} has no readable answer: {error}")) from None
        if 200 <= status < 300:
            return self._read(body, what)
        failure = f"status {status}: {excerpt(body)}"
        if status != 429 and status < 500:
            raise ServerError(f"{what} is refused with {failure}", status)
        self.interruptions += status != 429
        raise NoAnswer(failure, status)

    def _request(self, method: str, path: str, payload: Any, stop: Event | None = None) -> Any:
        end, pause, tries, stop = time.monotonic() + self.deadline, FIRST_PAUSE, 0, stop or Event()
        while True:
            tries += 1
            try:
                return self.try_once(method, path, payload, end)
            except NoAnswer as error:
                failure = error
            wait = pause * self._random.uniform(0.5, 1.0)
            if time.monotonic() + wait >= end:
                raise ServerError(
                    f"{method} {self.url}{path} was not answered within {self.deadline:g} seconds; the last of "
                    f"{tries} tries ended with {failure}. Check that the server runs and that its address is right.",
                    failure.status,
                )
            if tries == 1:
                _logger.warning(
                    "%s %s%s failed with %s. Trying again for %g seconds.",
                    *(method, self.url, path, failure, self.deadline),
                )
            if stop.wait(wait):
                raise CancelledError
            pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, method: str, path: str, payload: Any, end: float) -> tuple[int, bytes]:
        """Status and body of one answer, which must have arrived as a whole in time."""
        seconds = max(min(self._timeout, end - time.monotonic()), 0.01)
        stop = time.monotonic() + seconds
        timeout = httpx2.Timeout(seconds, connect=min(seconds, 10.0))
        content = None if payload is None else {"json": payload}
        with self._client.stream(method, path, timeout=timeout, **content or {}) as response:
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > _LARGEST_REPLY:
                    raise ServerError(
                        f"{method} {self.url}{path} is answered with more than {_LARGEST_REPLY // 2**20} MiB. Ask for "
                        "fewer sequences at a time."
                    )
                # The client's own limit is on the time between two parts.
                if time.monotonic() > stop:
                    raise httpx2.ReadTimeout(f"the answer was not complete after {seconds:g} seconds")
            return response.status_code, bytes(body)

    def _read(self, body: bytes, what: str) -> Any:
        if not body.strip():
            return None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ServerError(
                f"{what} is answered with what is not JSON ({type(error).__name__}): {excerpt(body)}. Check "
                "that the address is that of a vLLM server."
            ) from None


def excerpt(reply: Any) -> str:
    """The beginning of what a server sent, as it can be shown; without the key, which a server may send back."""
    text = without_key(repr(reply.decode(errors="replace") if isinstance(reply, bytes) else reply))
    return text if len(text) <= 300 else f"{text[:300]}…"


def without_key(text: str) -> str:
    """The text without any API key."""
    keys = {value.strip() for name, value in os.environ.items() if name == API_KEY or name.startswith(f"{API_KEY}_")}
    # As it is, and as it stands in quotes. One may be the beginning of another.
    for key in sorted((keys | {repr(key)[1:-1] for key in keys}) - {""}, key=len, reverse=True):
        text = text.replace(key, "***")
    return text


def check_url(url: Any) -> str:
    """The address of a server, without what is at its end anyway.

    Raises:
        ConfigError: If it is none, or has a password in it.
    """
    shown = re.sub(r"//[^/]*@", "//***@", str(url))
    if shown != str(url):
        raise ConfigError(
            f"The address of the server {shown!r} has a user or a password in it, which would be logged and saved. "
            f"Leave it out; an API key is read from the environment variable {API_KEY}."
        )
    try:
        parsed = httpx2.URL(url)
    except (TypeError, httpx2.InvalidURL):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ConfigError(f"{shown!r} is not the address of a server. Give one as http://127.0.0.1:8000.")
    return str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")


def _is_local(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_unspecified


def key_variable(name: str) -> str:
    """The environment variable for the key of the servers of this name."""
    return f"{API_KEY}_{re.sub('[^A-Z0-9]', '_', name.upper())}"


def _api_key(name: str) -> str | None:
    own = key_variable(name)
    variable = own if name and own in os.environ else API_KEY
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"The environment variable {variable} holds characters that an API key cannot have.")
    return key or None
