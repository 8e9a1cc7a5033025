"""What the processes of a run do together."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object

from ..errors import CacheError, ServerError


@contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Wait for the other processes at the end of the block; if a server or its cache failed one of them, all fail.

    Args:
        what: What is true of a process that was failed, for the message of the others.

    Raises:
        ServerError: In every process, for the reason of the first.
        CacheError: In one whose cache cannot be used.
    """
    failure = None
    try:
        yield
    except (CacheError, ServerError) as error:
        failure = error
    reasons = [reason for reason in gather_object([failure and str(failure)]) if reason]
    if failure is not None:
        raise failure
    if reasons:
        raise ServerError(f"Another process {what}: {reasons[0]}")
