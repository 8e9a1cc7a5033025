"""Two of the nine pairs of examples/combinations.py, with models that are smaller still."""

import pytest

from examples.combinations import STUDENTS, TEACHERS, Sizes, save_models, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    save_models(path, Sizes(hidden_size=64, layers=1))
    return path


@pytest.mark.parametrize("pair", [("full", "8-bit"), ("QLoRA", "4-bit")])
def test_a_pair_trains_for_two_steps(folder, pair):
    assert pair[0] in STUDENTS
    assert pair[1] in TEACHERS
    losses, memory = train(folder, pair)
    assert len(losses) == 2
    assert losses[0] != losses[1]
    assert memory >= 0
