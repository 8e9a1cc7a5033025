"""Several vLLM servers of one model: each request goes to the one that has least to do, past those that are away."""

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from threading import Condition, Event
from typing import Any

from ..errors import ServerError
from .server import FIRST_PAUSE, LONGEST_PAUSE, NoAnswer, VLLMServer


_logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass(eq=False, slots=True)
class _Replica:
    server: VLLMServer
    under_way: int = 0
    # How many requests it may have under way; one that is full (429) says how many are too many.
    room: float = math.inf
    # When it was last asked, by the number of the request.
    turn: int = -1
    # Why it is away, and until when it is left alone.
    failure: NoAnswer | None = None
    until: float = 0.0
    pause: float = FIRST_PAUSE
    # One that comes and goes is not warned of each time.
    warned: float = -math.inf
    level: int = logging.WARNING

    def is_open(self, now: float) -> bool:
        """Whether it may be asked; one that is away by one request at a time."""
        if self.failure is None:
            return self.under_way + 1 <= self.room
        return self.under_way == 0 and now >= self.until


class Replicas:
    """Asks several servers as if they were one; several threads may do so at the same time.

    A server that does not answer (as [`VLLMServer`] has it) is left alone for a while, and then tried with one
    request. What it was asked goes to another one. One that is full (429) while others of its requests are under way
    is asked for less at a time.

    Args:
        servers: Replicas of one model, all with the same deadline.
    """

    def __init__(self, servers: Sequence[VLLMServer]):
        self._replicas, self._turns = [_Replica(server) for server in servers], itertools.count()
        self._deadline, self._changed = servers[0].deadline, Condition()
        # When any of them answered last.
        self._answered = -math.inf

    def post(self, path: str, payload: Any, stop: Event | None = None) -> Any:
        """The JSON that one of them answers to a payload of JSON; `None` for an empty answer.

        Args:
            path: The path.
            payload: What is sent.
            stop: Where it is set, no server is asked any more.

        Raises:
            CancelledError: If `stop` was set before there was an answer.
            ServerError: If one refuses it, or none has answered before the deadline.
        """
        end, failures = time.monotonic() + self._deadline, dict[_Replica, NoAnswer]()
        while True:
            replica, was_away = self._take(path, end, failures, stop or Event())
            start, failure = time.monotonic(), None
            try:
                # Each has its own time, however long another one took.
                return replica.server.try_once("POST", path, payload, start + self._deadline)
            except NoAnswer as error:
                failure = failures[replica] = error
            finally:
                self._give_back(replica, was_away, failure, time.monotonic() - start)

    def _take(
        self, path: str, end: float, failures: Mapping[_Replica, NoAnswer], stop: Event
    ) -> tuple[_Replica, bool]:
        """A server to ask, and whether it was away; after `end` only one that was not asked before."""
        with self._changed:
            while True:
                if stop.is_set():
                    raise CancelledError
                now = time.monotonic()
                # What waits for a place at a server that answers others is not unanswered.
                end = max(end, self._answered + self._deadline)
                found = [each for each in self._replicas if each.is_open(now) and (now < end or each not in failures)]
                if found:
                    replica = min(found, key=lambda each: (each.under_way, each.turn))
                    replica.under_way += 1
                    replica.turn = next(self._turns)
                    return replica, replica.failure is not None
                if now >= end:
                    raise self._unanswered(path, failures)
                waits = [each.until - now for each in self._replicas if not each.under_way]
                # Who sets `stop` wakes nobody up.
                self._changed.wait(max(min([*waits, end - now, 0.5]), 0.0))

    def _unanswered(self, path: str, failures: Mapping[_Replica, NoAnswer]) -> ServerError:
        said = "; ".join(
            f"{each.server.url} with {failures.get(each, each.failure) or 'nothing yet'}" for each in self._replicas
        )
        return ServerError(
            f"POST {path} was not answered within {self._deadline:g} seconds by any of {len(self._replicas)} servers. "
            f"Their last tries ended: {said}. Check that the servers run and that their addresses are right."
        )

    def _give_back(self, replica: _Replica, was_away: bool, failure: NoAnswer | None, seconds: float) -> None:
        with self._changed:
            replica.under_way -= 1
            if failure is None:
                # One more at a time after ten answers.
                replica.room += 0.1
                self._answered = time.monotonic()
            if failure is not None and failure.status == 429 and replica.under_way:
                replica.room = min(replica.room, replica.under_way)
            # What was sent before it went away says nothing of how it is now.
            elif was_away or replica.failure is None:
                self._note(replica, failure, seconds)
            self._changed.notify_all()

    def _note(self, replica: _Replica, failure: NoAnswer | None, seconds: float) -> None:
        if failure is None:
            if replica.failure is not None:
                _logger.log(replica.level, "%s answers again and gets its share of the requests.", replica.server.url)
            replica.until = 0.0
        else:
            now = time.monotonic()
            is_due = now >= replica.warned + _SECONDS_BETWEEN_WARNINGS
            if replica.failure is None or (is_due and replica.level == logging.INFO):
                replica.level = logging.WARNING if is_due else logging.INFO
                replica.warned = now if is_due else replica.warned
                _logger.log(
                    replica.level,
                    "%s failed with %s. What it was asked goes to another server, and it is tried again.",
                    *(replica.server.url, failure),
                )
            is_recent = now < replica.until + LONGEST_PAUSE
            replica.pause = min(2 * replica.pause, LONGEST_PAUSE) if is_recent else FIRST_PAUSE
            # One that hangs takes long each time. But every request has the time to try each.
            replica.until = now + min(max(replica.pause, seconds), self._deadline / 2)
        replica.failure = failure
