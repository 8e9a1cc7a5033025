"""What the tests of the pages share."""

from pathlib import Path

import pytest

from tests.docs.stand_ins import fill_hub_cache


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory) -> Path:
    """A cache of the Hub with the models that the pages name."""
    folder = tmp_path_factory.mktemp("hub")
    fill_hub_cache(folder)
    return folder
