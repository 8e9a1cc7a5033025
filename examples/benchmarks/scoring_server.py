"""What a vLLM server takes to score completions: bytes on the wire, and requests at the same time against a loop.

    python -m examples.benchmarks.scoring_server --url http://127.0.0.1:8000

Sequences are random ids. The bytes are those of the bodies, request and answer, as the server sends them.
"""

import argparse
import json
import time
from collections.abc import Sequence

import httpx2
import torch

from trl_xtok.serving.models import find_model
from trl_xtok.serving.scores import Completion, ServedScorer
from trl_xtok.serving.server import VLLMServer

from .arguments import at_least_one, at_least_zero


def sequences(count: int, length: int) -> list[list[int]]:
    """Ids that every vocabulary of some size has, none of them special."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, 30000, (count, length), generator=generator).tolist()


def wire_bytes(url: str, model: str, rows: Sequence[Sequence[int]], k: int) -> tuple[int, int]:
    """Bytes of a request for scores, and of its answer with the `k` likeliest tokens of each place."""
    settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": k, "return_token_ids": True}
    content = json.dumps({"model": model, "prompt": rows, **settings}, separators=(",", ":"))
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    answer = httpx2.post(f"{url}/v1/completions", content=content, headers=headers, timeout=600, trust_env=False)
    answer.raise_for_status()
    return len(content), len(answer.content)


def seconds(client: VLLMServer, model: str, rows: Sequence[Sequence[int]], batch_size: int, at_once: int) -> float:
    """Wall time to score all sequences."""
    scorer = ServedScorer([client], model, batch_size=batch_size, max_concurrency=at_once)
    start = time.perf_counter()
    scorer.scores([Completion(tuple(row), 1) for row in rows])
    return time.perf_counter() - start


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the server")
    parser.add_argument("--length", type=at_least_one, default=128, help="ids of a sequence")
    parser.add_argument(
        "--top_k", type=at_least_zero, nargs="+", default=[0, 20, 100], help="likeliest tokens of each place"
    )
    args = parser.parse_args()
    client = VLLMServer(args.url, timeout=600.0, deadline=600.0)
    model = find_model(client).name
    rows = sequences(8, args.length)
    for k in args.top_k:
        sent, received = wire_bytes(client.url, model, rows, k)
        tokens = sum(map(len, rows))
        print(f"top {k}: {sent / tokens:.1f} bytes sent and {received / tokens:.1f} received per token", flush=True)
    rows = sequences(64, args.length)
    # The first requests compile and allocate.
    seconds(client, model, rows[:8], 8, 1)
    for batch_size, at_once in ((1, 1), (1, 64), (8, 8)):
        taken = seconds(client, model, rows, batch_size, at_once)
        speed = 64 * args.length / taken
        print(f"{at_once} requests of {batch_size} at once: {taken:.1f} s, {speed:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
