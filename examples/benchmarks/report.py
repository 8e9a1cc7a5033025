"""What both benchmarks print: a Markdown table, and what it was measured on."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with numbers to the right, in all but the first column."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three significant digits; `None` was not measured."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def machine_line(device: str) -> str:
    """Processor, threads and versions."""
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} in use"
    parts = [f"{_processor()} ({threads})"]
    if device != "cpu":
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, *(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))])


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
