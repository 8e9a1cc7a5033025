"""Settings that every test needs; they must stand before the first import of a Hugging Face package."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The first example of a test loads its tokenizers, which is slow and says nothing about the test.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> Iterator[None]:
    """Every trainer collects garbage several times, each time over all that is loaded: a quarter of the tests' time."""
    gc.collect()
    gc.freeze()
    yield


def pytest_sessionfinish() -> None:
    """Some libraries complain of objects that are left when Python ends."""
    gc.unfreeze()
