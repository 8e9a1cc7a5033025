"""Settings that every test needs; they must stand before the first import of a Hugging Face package."""

import os

from hypothesis import HealthCheck, settings


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The first example of a test loads its tokenizers, which is slow and says nothing about the test.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
