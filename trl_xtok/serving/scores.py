"""Log-probs of given ids from a vLLM server: one number per token, whatever the size of the model."""

import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from threading import Condition, Event, Lock, Thread
from typing import NamedTuple

from ..errors import ServerError
from .replicas import Replicas
from .replies import read_scores
from .score_cache import ScoreCache
from .server import VLLMServer


_logger = logging.getLogger(__name__)


class Completion(NamedTuple):
    """What is to be scored.

    Attributes:
        ids: Prompt and completion; at least one id is the prompt's.
        start: Where the completion begins.
    """

    ids: tuple[int, ...]
    start: int


def score(
    server: VLLMServer | Replicas, model: str, sequences: Sequence[Sequence[int]], stop: Event | None = None
) -> list[list[float]]:
    """Log-prob of each id but the first of each sequence, in one request; NaN where there is no usable value.

    Raises:
        CancelledError: If `stop` was set before there was an answer.
        ServerError: If the request is refused, or has no usable answer.
    """
    payload = {
        "model": model,
        "prompt": sequences,
        # It cannot be zero.
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }
    return read_scores(server.post("/v1/completions", payload, stop), sequences)


class ServedScorer:
    """Scores completions with a model that one or several servers serve.

    Args:
        servers: Replicas of one model; a request goes to the one that has least to do and is not away.
        model: Its name there.
        batch_size: Most completions of one request.
        max_concurrency: Requests that are under way at the same time, over all servers.
        cache: Where scores are kept, if they are.

    Attributes:
        requested: Completions that were sent to a server so far; those that were found in the cache are not.
    """

    def __init__(
        self,
        servers: Sequence[VLLMServer],
        model: str,
        *,
        batch_size: int = 8,
        max_concurrency: int = 8,
        cache: ScoreCache | None = None,
    ):
        self._server = servers[0] if len(servers) == 1 else Replicas(servers)
        self._model, self._cache, self._lock = model, cache, Lock()
        self.batch_size, self.max_concurrency = batch_size, max_concurrency
        self.requested = 0

    def scores(self, completions: Sequence[Completion]) -> list[list[float]]:
        """Log-prob of each id of each completion, in nats; NaN where the server has none to give.

        What is asked for more than once is sent once. What came before an error is in the cache.

        Args:
            completions: What is to be scored.

        Raises:
            ServerError: If no server answers before the deadline, or one answers what cannot be used.
            CacheError: If the cache cannot be used.
        """
        asked = BackgroundScores(self)
        try:
            return asked.wait(completions)
        finally:
            asked.close()

    def ask(self, batch: Sequence[Completion], stop: Event) -> dict[Completion, list[float]]:
        """Scores from the cache and, with one request, from a server; those are kept.

        Args:
            batch: What goes into one request.
            stop: Where it is set, nothing more is sent.

        Raises:
            CancelledError: If `stop` was set before all was sent.
            ServerError: If no server answers before the deadline, or one answers what cannot be used.
            CacheError: If the cache cannot be used.
        """
        keys = {} if self._cache is None else {each: self._cache.key(each.ids, each.start) for each in batch}
        cached = {} if self._cache is None else self._cache.read(keys.values())
        known = {each: cached[key] for each, key in keys.items() if _is_whole(cached.get(key, ()), each)}
        if missing := [each for each in batch if each not in known]:
            scores = dict(zip(missing, self._score(missing, stop), strict=True))
            with self._lock:
                self.requested += len(scores)
            # What has no value may have one another time.
            whole = {keys[each]: row for each, row in scores.items() if keys and _is_whole(row, each)}
            if self._cache is not None and whole:
                self._cache.write(whole)
            known |= scores
        return known

    def _score(self, batch: Sequence[Completion], stop: Event) -> list[list[float]]:
        """One request; if it is refused, its halves, so that nothing is lost but what the server cannot read."""
        if stop.is_set():
            raise CancelledError
        try:
            scored = score(self._server, self._model, [each.ids for each in batch], stop)
        except ServerError as error:
            # A proxy may find it too large.
            if error.status not in (400, 413, 422):
                raise
            if len(batch) > 1:
                half = len(batch) // 2
                return self._score(batch[:half], stop) + self._score(batch[half:], stop)
            _logger.warning("A completion of %d ids is left out: %s", _size(batch[0]), error)
            return [[math.nan] * _size(batch[0])]
        # The first id has no log-prob.
        return [logps[each.start - 1 :] for logps, each in zip(scored, batch, strict=True)]


class BackgroundScores:
    """Scores that are asked for in the background, each once: a request takes what waits when it may be sent.

    Args:
        scorer: Asks the servers.
    """

    def __init__(self, scorer: ServedScorer):
        self._scorer, self._changed, self._stop = scorer, Condition(), Event()
        self._threads = 0
        self._expected: set[Completion] = set()
        self._waiting: list[Completion] = []
        self._known: dict[Completion, list[float]] = {}
        self._failure: Exception | None = None

    def expect(self, completions: Iterable[Completion]) -> None:
        """Ask for them, each once, after all else that waits; after a failure nothing is asked for.

        To expect what waits once more puts it behind the rest, too. So all can be put into the order in which it will
        be needed, in one call.
        """
        asked = dict.fromkeys(each for each in completions if _size(each) > 0)
        with self._changed:
            waiting = {*self._waiting}
            last = [each for each in asked if each in waiting or each not in self._expected]
            self._waiting = [each for each in self._waiting if each not in asked] + last
            self._expected.update(last)
            while self._threads < self._scorer.max_concurrency and (batch := self._take()):
                self._threads += 1
                # The end of the process does not wait for an answer that nobody reads.
                Thread(target=self._ask, args=(batch,), daemon=True).start()

    def wait(self, completions: Sequence[Completion]) -> list[list[float]]:
        """Log-prob of each id of each completion, as soon as these are there; see [`ServedScorer.scores`].

        Raises:
            ServerError: As there, for whatever was asked.
            CacheError: The same.
        """
        needed = {each for each in completions if _size(each) > 0}
        if new := needed - self._expected:
            # Those of a request are of similar length.
            self.expect(sorted(new, key=lambda each: len(each.ids), reverse=True))
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or needed <= self._known.keys())
        if self._failure is not None:
            raise self._failure
        return [self._known[each] if each in needed else [] for each in completions]

    def close(self) -> None:
        """Send no more requests, and none again; those under way are not waited for."""
        self._stop.set()

    def _ask(self, batch: Sequence[Completion]) -> None:
        while batch:
            scores: dict[Completion, list[float]] = {}
            try:
                scores = self._scorer.ask(batch, self._stop)
            except CancelledError:
                pass
            except Exception as error:
                self._failure = self._failure or error
            with self._changed:
                self._known.update(scores)
                self._threads -= 1
                batch = self._take()
                self._threads += bool(batch)
                self._changed.notify_all()

    def _take(self) -> Sequence[Completion]:
        """What goes into the next request; nothing after a stop or a failure."""
        if self._stop.is_set() or self._failure is not None:
            return []
        # All requests that may be sent share what waits: the first of few completions does not wait for the last.
        share = math.ceil(len(self._waiting) / (self._scorer.max_concurrency - self._threads))
        size = min(share, self._scorer.batch_size)
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch


def _is_whole(logps: Sequence[float], completion: Completion) -> bool:
    """Whether there is a number for each id."""
    return len(logps) == _size(completion) and all(map(math.isfinite, logps))


def _size(completion: Completion) -> int:
    return len(completion.ids) - completion.start
