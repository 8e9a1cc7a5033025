"""Rollouts without an engine: seconds of sampling with each way of transformers that draws from the same distribution.

    python -m examples.benchmarks.rollouts
    python -m examples.benchmarks.rollouts --batch-size 4 --repeats 1

SmolLM2-135M-Instruct in float32 continues pieces of this project's documentation, 8 to 256 tokens long, at temperature
1. `plain` is `generate` on batches in the order of the prompts, padded on the left, with a growing cache. `sorted` is what
training does: prompts of like length are in one batch. `static` has a cache of fixed size besides, and `continuous` is
`generate_batch` with a paged cache, in which the next prompt takes the place of a completion that has ended; it has as
many at a time as the others have in a batch. The variants take turns, and the shortest time of each counts.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import logging

from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.training.rollouts import generate_completions

from .report import machine_line, markdown_table, number


DOCS = Path(__file__).parents[2] / "docs"
LENGTHS = (8, 16, 32, 64, 128, 256)
Completions = Sequence[Sequence[int]]


def make_prompts(encode: Callable[[str], list[int]], count: int) -> list[list[int]]:
    """Pieces of mixed lengths, in random order."""
    chance, ids = random.Random(0), encode((DOCS / "losses.md").read_text())
    lengths = [chance.choice(LENGTHS) for _ in range(count)]
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


VARIANTS = {"plain": in_order, "sorted": by_length, "static": static, "continuous": continuous}


def read_arguments() -> argparse.Namespace:
    """What is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of a completion")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4, 16], help="completions at a time")
    parser.add_argument("--repeats", type=int, default=3)
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
    speeds: dict[tuple[int, str], list[tuple[float, int]]] = {}
    for repeat in range(arguments.repeats):
        for size in arguments.batch_size:
            for name, sample in VARIANTS.items():
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


if __name__ == "__main__":
    main()
