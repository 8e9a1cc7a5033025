"""What vLLM does for rollouts, done with a transformers model behind a server of the standard library."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.serving.stub_server import Reply, Request, StubServer


class EngineServer(StubServer):
    """Samples from a model, which it loads again when it is told to.

    Attributes:
        model: The model.
        completions: What it sampled, by prompt and seed.
        loaded: How often weights were loaded.
        keeps_head: Whether it keeps its output head when it loads weights, as vLLM does with tied embeddings.
    """

    def __init__(self, path: str, *, keeps_head: bool = False, port: int = 0):
        self.model, self.keeps_head = _load(path), keeps_head
        self.completions: dict[tuple[tuple[int, ...], int], list[int]] = {}
        self.loaded, self._one_at_a_time = 0, threading.Lock()
        super().__init__(port, self._answer)

    def _answer(self, request: Request) -> Reply:
        with self._one_at_a_time:
            match request.path:
                case "/v1/models":
                    return Reply({"data": [{"id": "student"}]})
                case "/v1/completions":
                    return Reply(self._complete(request.json))
                case "/collective_rpc" if request.json["method"] == "reload_weights":
                    self._load(request.json["kwargs"]["weights_path"])
                    return Reply({"results": [None]})
                case "/reset_prefix_cache":
                    return Reply({"success": True})
        return Reply({"detail": "Not Found"}, 404)

    def _load(self, path: str) -> None:
        head = self.model.get_output_embeddings().weight
        self.model, self.loaded = _load(path), self.loaded + 1
        if self.keeps_head:
            self.model.get_output_embeddings().weight = head

    @torch.no_grad()
    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        prompt, generator = asked["prompt"], torch.Generator().manual_seed(asked["seed"])
        assert asked["model"] == "student"
        ids, logps = [], []
        while len(ids) < asked["max_tokens"] and not (ids and ids[-1] in asked["stop_token_ids"]):
            logits = self.model(input_ids=torch.tensor([prompt + ids])).logits[0, -1].float()
            drawn = (logits / asked["temperature"]).log_softmax(0)
            ids.append(int(torch.multinomial(drawn.exp(), 1, generator=generator)))
            logps.append(float(drawn[ids[-1]]))
        self.completions[tuple(prompt), asked["seed"]] = ids
        names = [f"token_id:{token}" for token in ids]
        choice = {
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "logprobs": {"tokens": names, "token_logprobs": logps},
            "finish_reason": "stop" if ids[-1] in asked["stop_token_ids"] else "length",
        }
        return {"choices": [choice]}


def _load(path: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def restarting(serve: Callable[..., EngineServer], server: EngineServer, at: list[int]) -> list[EngineServer]:
    """Have a server be started again, with `serve`, instead of answering some of the requests for completions."""
    asked, servers = [], [server]

    def watch(current: EngineServer) -> None:
        answer = current.answer

        def maybe_restart(request):
            if request.path == "/v1/completions":
                asked.append(request)
                if len(asked) in at:
                    current.close()
                    servers.append(serve(port=current.port))
                    watch(servers[-1])
                    return Reply(b"", declared=1)
            return answer(request)

        current.answer = maybe_restart

    watch(server)
    return servers
