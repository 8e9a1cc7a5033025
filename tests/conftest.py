"""Settings that every test needs; they must stand before the first import of a Hugging Face package."""

import gc
import os

import pytest
from hypothesis import HealthCheck, settings


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The first example of a test loads its tokenizers, which is slow and says nothing about the test.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Leave what earlier modules keep, such as tables of tokens, out of garbage collection, which trainers ask for."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let go of it: extension modules report what is left at the end as leaked."""
    gc.unfreeze()
