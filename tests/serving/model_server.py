"""A stub server that says of a small local model what vLLM would say of it."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.serving.stub_server import Reply, Request, StubServer


def choice(index: int, ids: list[int], logps: list[float]) -> dict[str, Any]:
    """One completion as vLLM answers it: `logps` are those of all ids but the first."""
    values = [{str(token): {"logprob": logp, "rank": 1}} for token, logp in zip(ids[1:], logps, strict=True)]
    return {
        "index": index,
        "text": " x",
        "finish_reason": "length",
        "prompt_logprobs": [None, *values],
        "prompt_token_ids": ids,
    }


class ModelServer(StubServer):
    """Answers `/v1/models`, `/tokenize` and `/v1/completions`, and refuses what vLLM refuses.

    Attributes:
        scored: Every sequence that was scored, in order.
        delay: Seconds before each answer with scores.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        names: tuple[str, ...] = ("teacher",),
        max_model_len: int | None = 256,
        port: int = 0,
    ):
        self._model, self._tokenizer, self._names, self._length = model.eval(), tokenizer, names, max_model_len
        self.scored: list[tuple[int, ...]] = []
        self.delay = 0.0
        # Somebody may be waiting for it already.
        super().__init__(port, self.serve)

    def serve(self, request: Request) -> Reply:
        if request.path == "/v1/models":
            about = {"root": "someone/teacher", "max_model_len": self._length}
            return Reply({"data": [{"id": name, **about} for name in self._names]})
        if request.json["model"] not in self._names:
            return Reply({"error": {"message": "no such model"}}, 404)
        if request.path == "/tokenize":
            assert request.json["add_special_tokens"] is False
            ids = self._tokenizer.encode(request.json["prompt"], add_special_tokens=False)
            return Reply({"tokens": ids, "count": len(ids)})
        assert request.path == "/v1/completions"
        return self._score(request.json["prompt"])

    def _score(self, sequences: list[list[int]]) -> Reply:
        for ids in sequences:
            if not ids or max(ids) >= self._model.config.vocab_size or len(ids) >= (self._length or 10**9):
                return Reply({"error": {"message": f"cannot read {len(ids)} ids"}}, 400)
        with self._lock:
            self.scored += map(tuple, sequences)
        return Reply({"choices": [choice(*pair) for pair in self._choices(sequences)]}, delay=self.delay)

    @torch.no_grad()
    def _choices(self, sequences: list[list[int]]):
        for index, ids in enumerate(sequences):
            logps = self._model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            yield index, ids, logps.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
