"""Measure one case of `loss.py` in this process, which has nothing else in its memory.

    python -m examples.benchmarks.measure '{"case": "chunk_rkl", "repeats": 3, "sizes": {"tokens": 32, ...}}'

Prints one line of JSON: `seconds`, the shortest of the repeats; `products`, the same of its matrix products alone, in
turn with it, since a machine's speed changes from minute to minute; `peak`, the most bytes in use above the inputs
during the first repeat, gradients included; or `skipped`, with the reason.
"""

import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .inputs import Sizes, SkippedCase
from .loss_cases import CASES, Case


# No further repeat starts after this many seconds.
LONG_ENOUGH = 30.0


def peak_memory(device: str) -> int:
    """The most bytes that were ever in use: by tensors on the device, or by this process on the CPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    # Bytes on macOS, KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def raise_to_peak(device: str) -> torch.Tensor | None:
    """Memory that brings this process up to its peak so far, so that all it takes from now on raises the peak.

    Loading tokenizers leaves a peak behind, and so does the parent process: Linux hands its peak down.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    if device != "cpu" or sys.platform != "linux":
        return None
    # What the allocator keeps of freed memory would serve the case unseen.
    ctypes.CDLL(None).malloc_trim(0)
    in_use = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return torch.ones(max(peak_memory(device) - in_use, 1), dtype=torch.uint8)


def timed(run: Callable[[], None], device: str) -> float:
    """Seconds that it takes, the work on the device included."""
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def small(case: Case, sizes: Sizes) -> Sizes:
    """Sizes for a first run, which loads the code and starts the threads."""
    vocab_size = None if case.real_tokens else 1000
    return replace(
        sizes,
        tokens=2 * sizes.sequences,
        hidden=16,
        student_vocab=vocab_size or sizes.student_vocab,
        teacher_vocab=vocab_size or sizes.teacher_vocab,
    )


def measure(case: Case, sizes: Sizes, repeats: int) -> dict[str, float]:
    """Seconds of a case and of its products, and its peak memory."""
    case.prepare(small(case, sizes))()
    run = case.prepare(sizes)
    gc.collect()
    ballast = raise_to_peak(sizes.device)
    before = peak_memory(sizes.device)
    seconds = [timed(run, sizes.device)]
    peak = peak_memory(sizes.device) - before
    del ballast
    products = CASES[case.products].prepare(sizes)
    bases = [timed(products, sizes.device)]
    while len(seconds) < repeats and sum(seconds) < LONG_ENOUGH:
        seconds.append(timed(run, sizes.device))
        bases.append(timed(products, sizes.device))
    return {"seconds": min(seconds), "products": min(bases), "peak": peak}


def main(request: dict[str, Any]) -> None:
    """Measure what the request names."""
    try:
        result = measure(CASES[request["case"]], Sizes(**request["sizes"]), request["repeats"])
    except SkippedCase as skipped:
        result = {"skipped": str(skipped)}
    except torch.OutOfMemoryError:
        result = {"skipped": "it needs more memory than the device has"}
    print(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
