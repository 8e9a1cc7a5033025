"""What the processes of a run do together."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import gather_object

from ..errors import CacheError, ProcessError, ServerError


@contextmanager
def failing_together(what: str) -> Iterator[None]:
    """Wait for the other processes at the end of the block; if one of them failed, all fail.

    Args:
        what: What is true of a process that failed, for the message of the others.

    Raises:
        Exception: In a process that failed, what it failed with.
        ServerError: In the others, if all that failed did so for a server or a cache: they can still save a checkpoint
            together.
        ProcessError: In the others, if one failed for any other reason.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    can_save = isinstance(failure, CacheError | ServerError)
    reason = str(failure) if can_save else f"{type(failure).__name__}: {failure}"
    failures = [each for each in gather_object([(can_save, reason) if failure is not None else None]) if each]
    # Saving waits for all processes, and one that failed otherwise does not come to it.
    fatal = [said for may_save, said in failures if not may_save]
    if fatal and (failure is None or can_save):
        raise ProcessError(f"Another process {what} and ends with {fatal[0]}") from failure
    if failure is not None:
        raise failure
    if failures:
        raise ServerError(f"Another process {what}: {failures[0][1]}")


def true_of_any(value: bool) -> bool:
    """Whether it is true in any of the processes, all of which ask."""
    return any(gather_object([value]))
