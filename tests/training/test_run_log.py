"""Memory among the metrics; a stand-in for CUDA shows what is asked of it, not what a card says."""

from types import SimpleNamespace

import pytest
import torch

from tests import real_tokenizers
from tests.training.tiny_models import tiny_args
from trl_xtok.training.run_log import RunLog


@pytest.fixture
def on_cuda(tmp_path, monkeypatch):
    """A run log that takes itself to be on a card with 3 GiB allocated, and the resets that it asked for."""
    resets = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)

    def make(**changes):
        accelerator = SimpleNamespace(device=torch.device("cuda", 0), is_main_process=True)
        return RunLog(
            real_tokenizers.smollm2(), [real_tokenizers.mistral1()], tiny_args(tmp_path, **changes), accelerator
        )

    return make, resets


def test_peak_memory_counts_from_the_last_time(on_cuda):
    make, resets = on_cuda
    assert make()._peak_memory() == {"memory/peak_gb": 3.0}
    assert resets == [torch.device("cuda", 0)]


def test_peak_memory_leaves_the_measurement_of_transformers_alone(on_cuda):
    make, resets = on_cuda
    assert make(skip_memory_metrics=False)._peak_memory() == {}
    assert not resets


@pytest.mark.gpu
def test_peak_memory_is_that_of_the_card(tmp_path):
    accelerator = SimpleNamespace(device=torch.device("cuda", 0), is_main_process=True)
    log = RunLog(real_tokenizers.smollm2(), [real_tokenizers.mistral1()], tiny_args(tmp_path), accelerator)
    log._peak_memory()
    block = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del block
    before = torch.cuda.memory_allocated() / 2**30
    assert log._peak_memory()["memory/peak_gb"] == pytest.approx(before + 0.25, abs=0.01)
