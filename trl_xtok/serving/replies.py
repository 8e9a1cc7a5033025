"""Log-probs out of the reply to a scoring request.

They are read by id, never by rank. What has the wrong shape is an error; a value that says nothing is NaN.
"""

import math
from collections.abc import Sequence
from typing import Any

from ..errors import ServerError
from .server import excerpt


# What a log-prob may be above zero by rounding.
_ROUND_OFF = 1e-3
# What vLLM writes for minus infinity (seen with 0.32).
_LOWEST = -9999.0


def read_scores(reply: Any, sent: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-prob of each id but the first of each sequence, in nats; NaN where there is no usable value.

    Args:
        reply: The answer to the request, as JSON is read.
        sent: The sequences of the request, in its order.

    Raises:
        ServerError: If it is no answer to this request.
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _unusable("no list of `choices`", reply)
    indices = [choice.get("index") for choice in choices]
    if not all(type(index) is int for index in indices) or sorted(indices) != [*range(len(sent))]:
        raise _unusable(f"choices with `index` {excerpt(indices)} for {len(sent)} sequences", reply)
    ordered = sorted(choices, key=lambda choice: choice["index"])
    return [_read_choice(choice, ids) for choice, ids in zip(ordered, sent, strict=True)]


def _read_choice(choice: dict[str, Any], ids: Sequence[int]) -> list[float]:
    echoed = choice.get("prompt_token_ids")
    # `True == 1` and `1.0 == 1`.
    if not isinstance(echoed, list) or not all(type(token) is int for token in echoed):
        raise _unusable("no `prompt_token_ids` (vLLM sends them since 0.10.2, if `return_token_ids` is set)", choice)
    if echoed != [*ids]:
        pairs = zip([*ids, None], [*echoed, None], strict=False)
        place = next(place for place, (here, there) in enumerate(pairs) if here != there)
        raise _unusable(
            f"other ids than were sent: {len(echoed)} instead of {len(ids)}, the first difference at {place}", choice
        )
    values = choice.get("prompt_logprobs")
    if not isinstance(values, list) or len(values) != len(ids):
        found = f"{len(values)}" if isinstance(values, list) else "no"
        raise _unusable(f"{found} `prompt_logprobs` for {len(ids)} ids", choice)
    return [_read_value(entry, token) for entry, token in zip(values[1:], ids[1:], strict=True)]


def _read_value(entry: Any, token: int) -> float:
    if entry is None:
        return math.nan
    if not isinstance(entry, dict):
        raise _unusable("`prompt_logprobs` that are not by id", entry)
    found = entry.get(str(token))
    if found is None:
        return math.nan
    if not isinstance(found, dict) or not isinstance(value := found.get("logprob"), int | float | None):
        raise _unusable(f"no number as `logprob` of the id {token}", entry)
    # A boolean is an integer, and an integer may be too large for a float.
    if value is None or isinstance(value, bool) or not _LOWEST < value <= _ROUND_OFF:
        return math.nan
    return min(float(value), 0.0)


def _unusable(found: str, part: Any) -> ServerError:
    return ServerError(f"A request for scores was answered with {found}: {excerpt(part)}")
