"""Log-probs of given ids from a vLLM server: one number per token, whatever the size of the model."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from threading import Event, Lock
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


def score(server: VLLMServer | Replicas, model: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-prob of each id but the first of each sequence, in one request; NaN where there is no usable value.

    Raises:
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
    return read_scores(server.post("/v1/completions", payload), sequences)


class ServedScorer:
    """Scores completions with a model that one or several servers serve.

    Args:
        servers: Replicas of one model; a request goes to the one that has least to do and is not away.
        model: Its name there.
        batch_size: Completions of one request.
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
        self._model, self._batch_size, self._max_concurrency = model, batch_size, max_concurrency
        self._cache = cache
        self.requested = 0

    def scores(self, completions: Sequence[Completion], stop: Event | None = None) -> list[list[float]]:
        """Log-prob of each id of each completion, in nats; NaN where the server has none to give.

        What is asked for more than once is sent once. What came before an error is in the cache.

        Args:
            completions: What is to be scored.
            stop: Where it is set meanwhile, no more requests are sent, and what is missing is empty.

        Raises:
            ServerError: If a server does not answer before its deadline, or answers what cannot be used.
            CacheError: If the cache cannot be used.
        """
        wanted = dict.fromkeys(completion for completion in completions if completion.start < len(completion.ids))
        keys = {} if self._cache is None else {each: self._cache.key(each.ids, each.start) for each in wanted}
        cached = {} if self._cache is None else self._cache.read(keys.values())
        known = {each: cached[key] for each, key in keys.items() if len(cached.get(key, ())) == _size(each)}
        for batch, scores in self._ask([each for each in wanted if each not in known], stop or Event()):
            known |= zip(batch, scores, strict=True)
            self._keep(dict(zip((keys[each] for each in batch), scores, strict=True)) if keys else {})
        return [known.get(each, []) for each in completions]

    def _keep(self, scores: dict[bytes, list[float]]) -> None:
        # What is missing may come another time.
        whole = {key: values for key, values in scores.items() if not any(map(math.isnan, values))}
        if self._cache is not None and whole:
            self._cache.write(whole)

    def _ask(
        self, completions: Sequence[Completion], stop: Event
    ) -> Iterator[tuple[list[Completion], list[list[float]]]]:
        """Batches of similar length and their scores, in the order in which they come."""
        # The longest first: they take longest.
        ordered = sorted(completions, key=lambda each: len(each.ids), reverse=True)
        batches = [ordered[at : at + self._batch_size] for at in range(0, len(ordered), self._batch_size)]
        pool = ThreadPoolExecutor(max(min(self._max_concurrency, len(batches)), 1), "trl_xtok-scores")
        try:
            futures: dict[Future[list[list[float]]], list[Completion]] = {}
            for batch in batches:
                futures[pool.submit(self._score, batch, stop)] = batch
            failure = None
            for future in as_completed(futures):
                try:
                    scores = future.result()
                except ServerError as error:
                    failure = failure or error
                    # Those that are under way may still have an answer.
                    for other in futures:
                        other.cancel()
                except CancelledError:
                    continue
                else:
                    self.requested += len(scores)
                    yield futures[future], scores
            if failure is not None:
                raise failure
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _score(self, batch: Sequence[Completion], stop: Event) -> list[list[float]]:
        """One request; if it is refused, its halves, so that nothing is lost but what the server cannot read."""
        if stop.is_set():
            raise CancelledError
        try:
            scored = score(self._server, self._model, [each.ids for each in batch])
        except ServerError as error:
            if error.status not in (400, 422):
                raise
            if len(batch) > 1:
                half = len(batch) // 2
                return self._score(batch[:half], stop) + self._score(batch[half:], stop)
            _logger.warning("A completion of %d ids is left out: %s", _size(batch[0]), error)
            return [[math.nan] * _size(batch[0])]
        # The first id has no log-prob.
        return [logps[each.start - 1 :] for logps, each in zip(scored, batch, strict=True)]


class BackgroundScores:
    """Scores that are asked for in the background, each once; what comes while the servers are busy goes together.

    Args:
        scorer: Asks the servers.
    """

    def __init__(self, scorer: ServedScorer):
        self._scorer, self._lock = scorer, Lock()
        # One at a time: while it asks for some, the next are gathered.
        self._thread = ThreadPoolExecutor(1, "trl_xtok-background")
        self._expected: set[Completion] = set()
        self._waiting: list[Completion] = []
        self._pending: list[Future[None]] = []
        self._known: dict[Completion, list[float]] = {}
        self._stop = Event()
        self._failure: Exception | None = None

    def expect(self, completions: Iterable[Completion]) -> None:
        """Ask for those that were not asked for yet; after a failure nothing is."""
        new = [each for each in dict.fromkeys(completions) if each not in self._expected]
        if not new:
            return
        self._expected.update(new)
        with self._lock:
            self._waiting += new
        self._pending.append(self._thread.submit(self._ask))

    def wait(self, completions: Sequence[Completion]) -> list[list[float]]:
        """What [`ServedScorer.scores`] says of them, when it is there.

        Raises:
            ServerError: As there, for whatever was asked.
            CacheError: The same.
        """
        self.expect(completions)
        while self._pending:
            self._pending.pop(0).result()
        if self._failure is not None:
            raise self._failure
        return [self._known[each] for each in completions]

    def close(self) -> None:
        """Send no more requests; those under way are not waited for."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> None:
        with self._lock:
            asked, self._waiting = self._waiting, []
        if self._failure is None:
            try:
                self._known |= zip(asked, self._scorer.scores(asked, self._stop), strict=True)
            except Exception as error:
                self._failure = error


def _size(completion: Completion) -> int:
    return len(completion.ids) - completion.start
