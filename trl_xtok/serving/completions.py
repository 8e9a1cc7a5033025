"""Completions that a vLLM server samples, in the ids that it drew, and weights that it reads from a folder.

A reply is used only if it can be what was asked for: the sampled ids with their log-probs, none of them outside the
vocabulary, and ended where sampling here would have ended.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from threading import Event
from typing import Any

from ..errors import ServerError
from .server import VLLMServer, excerpt


# As many as TRL's client; the server itself puts together what it computes at the same time.
_REQUESTS = 64
# Seconds between tries to empty the cache, which a request that somebody gave up may still hold.
_PAUSES = (0.1, 0.5, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are sampled: from the plain softmax.

    Attributes:
        temperature: Divides the logits.
        max_tokens: Most tokens of a completion.
        stop_ids: Tokens that end it.
        vocab_size: Number of ids that the student has.
    """

    temperature: float
    max_tokens: int
    stop_ids: frozenset[int]
    vocab_size: int


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """What a server drew.

    Attributes:
        ids: The tokens, a stop token included if one was drawn.
        logps: Log-prob that the server gives to each of them, in nats.
    """

    ids: list[int]
    logps: list[float]


class CompletionServer:
    """A server that samples for the student.

    Args:
        server: Where it is.
        sampling: How completions are sampled.
        requests: Most requests at the same time, one for each completion; `None` for 64.

    Raises:
        ServerError: If no vLLM server is there.
    """

    def __init__(self, server: VLLMServer, sampling: Sampling, *, requests: int | None = None):
        self._server, self._sampling, self._requests = server, sampling, requests or _REQUESTS
        self.start_over()
        reply = server.get("/v1/models")
        try:
            self._model = str(reply["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ServerError(
                f"{server.url}/v1/models is answered with {excerpt(reply)}, which names no model. Check that the "
                "address is that of a vLLM server."
            ) from None

    @property
    def was_interrupted(self) -> bool:
        """Whether the server may have been started again since it read weights, and so have those of its start."""
        return self._server.interruptions != self._interruptions

    def start_over(self) -> None:
        """Take the server for one that was not interrupted, since another process has it read weights."""
        self._interruptions = self._server.interruptions

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        on_sampled: Callable[[int, SampledCompletion], None] | None = None,
    ) -> list[SampledCompletion]:
        """One completion for each prompt.

        Args:
            prompts: Token ids of each prompt.
            seeds: One for each prompt; the same seed draws the same again, but for rounding.
            on_sampled: Is given each completion and the place of its prompt when it is there, in this thread.

        Raises:
            ServerError: If the server does not answer, refuses a prompt, or an answer is not what was asked for.
        """
        if not prompts:
            return []
        completions: dict[int, SampledCompletion] = {}
        stop = Event()

        def sample(place: int) -> tuple[int, SampledCompletion]:
            return place, self._sample(prompts[place], seeds[place], stop)

        # Its threads end with the process, whatever they wait for.
        with ThreadPool(min(self._requests, len(prompts))) as pool:
            try:
                for place, completion in pool.imap_unordered(sample, range(len(prompts))):
                    completions[place] = completion
                    if on_sampled is not None:
                        on_sampled(place, completion)
            finally:
                stop.set()
        return [completions[place] for place in range(len(prompts))]

    def reload(self, folder: Path) -> None:
        """Have the server read its weights from a folder, and forget what it computed with the old ones.

        Args:
            folder: A saved model of the same shape, which the server finds at the same path.

        Raises:
            ServerError: If it cannot.
        """
        payload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._develop("/collective_rpc", payload)
        except ServerError as error:
            if error.status is None or error.status < 500:
                raise
            raise ServerError(
                f"{self._server.url} cannot read weights from {str(folder)!r}: {error} The server must find this "
                "folder at the same path, and serve a model of the same shape. It may have ended over this; its own "
                "log says more. `vllm_weight_sync_dir` names another folder.",
                error.status,
            ) from None
        # Before that it may have been started again: what counts is who read them in the end.
        self.start_over()
        reply = self._develop("/reset_prefix_cache", {})
        for pause in _PAUSES:
            if _is_done(reply):
                break
            time.sleep(pause)
            reply = self._develop("/reset_prefix_cache", {})
        if not _is_done(reply):
            raise ServerError(
                f"{self._server.url} keeps what it computed with the old weights: `/reset_prefix_cache` is answered "
                f"with {excerpt(reply)}. It does so while it works for somebody else; let it serve this run alone."
            )

    def _develop(self, path: str, payload: Any) -> Any:
        try:
            return self._server.post(path, payload)
        except ServerError as error:
            if error.status != 404:
                raise
            raise ServerError(
                f"{self._server.url} has no {path!r}, which is needed to send it the student's weights. Start it with "
                "the environment variable VLLM_SERVER_DEV_MODE=1.",
                404,
            ) from None

    def _sample(self, prompt: Sequence[int], seed: int, stop: Event) -> SampledCompletion:
        sampling = self._sampling
        payload = {
            "model": self._model,
            "prompt": list(prompt),
            "n": 1,
            "seed": seed,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            # What is left out, the server takes from the generation settings of its model.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # It may know fewer or other stop tokens than the trainer.
            "ignore_eos": True,
            "stop_token_ids": sorted(sampling.stop_ids),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        reply = self._server.post("/v1/completions", payload, stop)
        try:
            (choice,) = reply["choices"]
            logprobs = choice["logprobs"]
            completion = SampledCompletion(choice["token_ids"], logprobs["token_logprobs"])
            names, reason, echo = logprobs["tokens"], choice["finish_reason"], choice["prompt_token_ids"]
        except (KeyError, TypeError, ValueError):
            raise self._unusable(
                f"{excerpt(reply)}, where one choice with `token_ids`, `prompt_token_ids` and the `token_logprobs` of "
                "its tokens was asked for"
            ) from None
        if echo != list(prompt):
            raise self._unusable(f"a completion of other ids than the {len(prompt)} of the prompt: {excerpt(echo)}")
        self._check(completion, names)
        self._check_end(completion.ids, reason)
        return completion

    def _check(self, completion: SampledCompletion, names: Any) -> None:
        ids, logps, size = completion.ids, completion.logps, self._sampling.vocab_size
        if not _all(ids, lambda value: type(value) is int and 0 <= value < size):
            raise self._unusable(f"{excerpt(ids)}, where ids from 0 to {size - 1} were asked for")
        if not _all(logps, lambda value: type(value) in (int, float) and math.isfinite(value)):
            raise self._unusable(f"log-probs that are not all finite numbers: {excerpt(logps)}")
        if names != [f"token_id:{token}" for token in ids] or len(logps) != len(ids):
            raise self._unusable(
                f"{len(logps)} log-probs of {excerpt(names)}, where the sampled tokens are {excerpt(ids)}"
            )

    def _check_end(self, ids: Sequence[int], reason: Any) -> None:
        limit, stops = self._sampling.max_tokens, self._sampling.stop_ids
        stopped = bool(ids) and ids[-1] in stops
        if reason not in ("stop", "length") or not ids or len(ids) > limit or not stops.isdisjoint(ids[:-1]):
            raise self._unusable(
                f"{len(ids)} tokens that end with {excerpt(reason)}, where at most {limit} up to one of the stop "
                f"tokens {excerpt(sorted(stops))} were asked for: {excerpt(ids)}"
            )
        if not stopped and len(ids) < limit:
            raise ServerError(
                f"{self._server.url} cut a completion off after {len(ids)} of {limit} tokens. Its context is too "
                "short for prompt and completion: start it with a larger `--max-model-len`, or lower `max_length`."
            )

    def _unusable(self, found: str) -> ServerError:
        return ServerError(
            f"{self._server.url}/v1/completions is answered with {found}. Check that the address is that of a vLLM "
            "server with the student's model."
        )


def _is_done(reply: Any) -> bool:
    # Servers before vLLM 0.26 answer with nothing.
    return reply is None or (isinstance(reply, dict) and reply.get("success") is True)


def _all(values: Any, is_good: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(is_good, values))
