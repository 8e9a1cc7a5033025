"""What is counted as alive."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_xtok.planning.live_memory import LiveMemory


def test_storages_count_once_and_until_nothing_refers_to_them():
    with FakeTensorMode(), LiveMemory() as memory:
        values = torch.empty(1000)
        view = values.view(10, 100)[3]
        assert memory.live == 4000
        del values
        assert memory.live == 4000
        del view
        assert (memory.live, memory.peak) == (0, 4000)


def test_temporaries_raise_the_peak_and_parts_are_those_of_the_peak():
    with FakeTensorMode(), LiveMemory() as memory:
        values = torch.empty(1000)
        memory.start()
        memory.parts["name"] = 1
        total = (values * 2 + 1).sum()
        memory.parts["name"] = 2
        assert memory.live == 4000 + total.nbytes
        assert (memory.peak, memory.parts_at_peak) == (12000, {"name": 1})


def test_what_happens_in_a_pause_is_no_peak():
    with FakeTensorMode(), LiveMemory() as memory:
        with memory.paused():
            torch.empty(1000)
        assert memory.peak == 0


def test_gradients_of_autograd_count():
    with FakeTensorMode(), LiveMemory() as memory:
        weight = torch.empty(100, 100, requires_grad=True)
        (torch.empty(5, 100) @ weight).sum().backward()
        assert memory.live == 2 * 40_000
