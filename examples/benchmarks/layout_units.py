"""Sizes and times as the tables of layouts write them."""

from trl_xtok.planning.gpus import GIB


def gib(size: float) -> str:
    """A size in GiB."""
    if not size:
        return "-"
    return f"{size / GIB:.1f}" if abs(size) >= GIB / 2 else f"{size / GIB:.2f}"


def size_text(size: float) -> str:
    """A size with its unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size / 1e3:.1f} kB"


def seconds_text(seconds: float) -> str:
    """Seconds, to two digits where they are few."""
    if seconds < 0.01:
        return "under 0.01"
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:#.2g}".rstrip(".")
