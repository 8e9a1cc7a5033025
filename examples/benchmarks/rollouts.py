"""Rollouts without an engine: seconds of sampling with each way of transformers that draws from the same distribution.

    python -m examples.benchmarks.rollouts
    python -m examples.benchmarks.rollouts --batch-size 4 --repeats 1
    python -m examples.benchmarks.rollouts --server http://127.0.0.1:8000

SmolLM2-135M-Instruct in float32 continues pieces of this project's documentation, 8 to 256 tokens long, at temperature
1. `plain` is `generate` on batches in the order of the prompts, padded on the left, with a growing cache. `sorted` is
what training does: prompts of like length are in one batch. `static` has a cache of fixed size besides, and
`continuous` is `generate_batch` with a paged cache, in which the next prompt takes the place of a completion that has
ended; it has as many at a time as the others have in a batch. The variants take turns, and the shortest time of each
counts. With `--server`, a vLLM server that has the same model samples, too, and the time it takes to send it the
weights is told.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import logging

from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.serving.completions import CompletionServer, Sampling
from trl_xtok.serving.server import VLLMServer
from trl_xtok.training.rollouts import generate_completions
from trl_xtok.training.served_student import saved_for_server

from .arguments import at_least_one
from .report import machine_line, markdown_table, number


DOCS = Path(__file__).parents[2] / "docs"
LENGTHS = (8, 16, 32, 64, 128, 256)
Completions = Sequence[Sequence[int]]


def make_prompts(encode: Callable[[str], list[int]], count: int, following: int = 0) -> list[list[int]]:
    """Pieces of mixed lengths, in random order, and so many tokens that follow each."""
    chance, ids = random.Random(0), encode((DOCS / "losses.md").read_text())
    lengths = [chance.choice(LENGTHS) + following for _ in range(count)]
    return [ids[start : start + length] for length in lengths for start in (chance.randrange(len(ids) - length),)]


def in_order(model: PreTrainedModel, prompts: Completions, config: GenerationConfig, size: int) -> Completions:
    """Batches in the order of the prompts."""
    starts = range(0, len(prompts), size)
    return [ids for start in starts for ids in by_length(model, prompts[start : start + size], config, size)]


def by_length(model: PreTrainedModel, prompts: Completions, config: GenerationConfig, size: int) -> Completions:
    """As training does it."""
    return generate_completions(model, prompts, config, size, model.device)


def static(model: PreTrainedModel, prompts: Completions, config: GenerationConfig, size: int) -> Completions:
    """With a cache of fixed size."""
    fixed = GenerationConfig.from_dict({**config.to_dict(), "cache_implementation": "static"})
    return by_length(model, prompts, fixed, size)


def continuous(model: PreTrainedModel, prompts: Completions, config: GenerationConfig, size: int) -> Completions:
    """With a paged cache, from which completions leave when they end."""
    settings = ContinuousBatchingConfig(
        num_blocks=2 * len(prompts), max_batch_tokens=2048, max_requests_per_batch=size, seed=torch.initial_seed()
    )
    outputs = model.generate_batch(prompts, config, continuous_batching_config=settings, warmup=False)
    return [output.generated_tokens for output in outputs.values()]


def served(
    model: PreTrainedModel, prompts: Completions, config: GenerationConfig, size: int, *, server: VLLMServer
) -> Completions:
    """By a vLLM server."""
    stops = frozenset([config.eos_token_id])
    sampling = Sampling(config.temperature, config.max_new_tokens, stops, model.config.vocab_size)
    completions = CompletionServer(server, sampling, requests=size).sample(prompts, range(len(prompts)))
    return [completion.ids for completion in completions]


def send(model: PreTrainedModel, server: VLLMServer) -> tuple[float, float]:
    """Seconds to save the weights, and until the server has read them."""
    sampling = Sampling(1.0, 1, frozenset(), model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with saved_for_server(model, Path(folder)) as saved:
            middle = time.perf_counter()
            CompletionServer(server, sampling).reload(saved)
            return middle - start, time.perf_counter() - middle


VARIANTS = {"plain": in_order, "sorted": by_length, "static": static, "continuous": continuous}


def read_arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=at_least_one, default=16)
    parser.add_argument("--tokens", type=at_least_one, default=64, help="most tokens of a completion")
    parser.add_argument("--batch-size", type=at_least_one, nargs="+", default=[4, 16], help="completions at a time")
    parser.add_argument("--repeats", type=at_least_one, default=3)
    parser.add_argument(
        "--server", help="address of a vLLM server with the model, started with VLLM_SERVER_DEV_MODE=1"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, and print the table."""
    arguments = read_arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    path = demo_model_path("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompts = make_prompts(partial(tokenizer.encode, add_special_tokens=False), arguments.prompts)
    config = GenerationConfig(
        max_new_tokens=arguments.tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    server = None if arguments.server is None else VLLMServer(arguments.server, timeout=600.0, deadline=600.0)
    variants = VARIANTS if server is None else {**VARIANTS, "vLLM": partial(served, server=server)}
    speeds: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for repeat in range(arguments.repeats):
        for size in arguments.batch_size:
            for name, sample in variants.items():
                torch.manual_seed(repeat)
                start = time.perf_counter()
                tokens = sum(map(len, sample(model, prompts, config, size)))
                speeds.setdefault((size, name), []).append((time.perf_counter() - start, tokens))
    rows = [
        [name, str(size), number(seconds), number(tokens / seconds)]
        for (size, name), runs in speeds.items()
        for seconds, tokens in (min(runs),)
    ]
    print(f"{machine_line('cpu')}. float32, {len(prompts)} prompts, at most {arguments.tokens} new tokens.\n")
    print(markdown_table(("sampling", "at a time", "seconds", "tokens per second"), rows))
    if server is not None:
        times = [send(model, server) for _ in range(arguments.repeats)]
        saving, reading = (min(column) for column in zip(*times, strict=True))
        print(f"\nWeights: saved in {number(saving)} s, read by the server in {number(reading)} s.")


if __name__ == "__main__":
    main()
