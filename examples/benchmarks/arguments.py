"""What numbers on the command line may be."""

import math
from argparse import ArgumentTypeError


def at_least_one(text: str) -> int:
    """A whole number."""
    return _whole(text, 1)


def at_least_zero(text: str) -> int:
    """A whole number."""
    return _whole(text, 0)


def positive(text: str) -> float:
    """More than 0, and finite."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no finite number above 0.")
    return value


def share(text: str) -> float:
    """From 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is no number from 0 to 1.")
    return value


def _whole(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least {least}.")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
