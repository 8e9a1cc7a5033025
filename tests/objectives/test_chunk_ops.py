import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_xtok.objectives import chunk_sizes, spread_over_tokens, sum_by_chunk


ids_of_tokens = st.lists(st.integers(-1, 6), max_size=40).map(lambda ids: torch.tensor(ids, dtype=torch.long))


def values_for(chunk_ids, seed=0):
    return torch.randn(len(chunk_ids), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("chunk_ids", "num_chunks", "sums", "sizes"),
    [
        pytest.param([], 0, [], [], id="no tokens, no chunks"),
        pytest.param([], 2, [0, 0], [0, 0], id="chunks without tokens"),
        pytest.param([-1, -1], 0, [], [], id="no token in a chunk"),
        pytest.param([0, 0, 1], 2, [3, 4], [2, 1], id="neighbours"),
        pytest.param([1, -1, 1], 2, [0, 5], [0, 2], id="a dropped token inside, chunk 0 empty"),
        pytest.param([2, 0, 2], 3, [2, 0, 5], [1, 0, 2], id="any order"),
    ],
)
def test_sums_and_sizes(chunk_ids, num_chunks, sums, sizes):
    values = torch.tensor([1.0, 2.0, 4.0])[: len(chunk_ids)]
    ids = torch.tensor(chunk_ids, dtype=torch.long)
    assert sum_by_chunk(values, ids, num_chunks).tolist() == sums
    assert chunk_sizes(ids, num_chunks).tolist() == sizes


@given(chunk_ids=ids_of_tokens)
def test_sums_equal_a_loop(chunk_ids):
    values = values_for(chunk_ids)
    expected = [values[chunk_ids == chunk].sum() for chunk in range(7)]
    torch.testing.assert_close(sum_by_chunk(values, chunk_ids, 7), torch.stack(expected))


@given(chunk_ids=ids_of_tokens)
def test_spreading_and_summing_are_adjoint(chunk_ids):
    tokens, chunks = values_for(chunk_ids, 1), torch.randn(7, generator=torch.Generator().manual_seed(2))
    spread = spread_over_tokens(chunks, chunk_ids)
    torch.testing.assert_close(spread @ tokens, chunks @ sum_by_chunk(tokens, chunk_ids, 7))


@given(chunk_ids=ids_of_tokens, seed=st.integers(0, 9))
def test_order_and_padding_do_not_matter(chunk_ids, seed):
    values = values_for(chunk_ids)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    shuffled = sum_by_chunk(values[order], chunk_ids[order], 7)
    padded = sum_by_chunk(
        torch.cat([values, torch.full((3,), float("nan"))]), torch.cat([chunk_ids, torch.full((3,), -1)]), 7
    )
    torch.testing.assert_close(shuffled, sum_by_chunk(values, chunk_ids, 7))
    torch.testing.assert_close(padded, sum_by_chunk(values, chunk_ids, 7))


def test_tokens_in_no_chunk_get_the_fill():
    assert spread_over_tokens(torch.tensor([5.0]), torch.tensor([-1, 0]), fill=-3.0).tolist() == [-3.0, 5.0]


def test_gradients_equal_finite_differences():
    ids = torch.tensor([0, 2, -1, 2, 0])
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    chunks = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: sum_by_chunk(values, ids, 3), values)
    assert torch.autograd.gradcheck(lambda chunks: spread_over_tokens(chunks, ids), chunks)


@pytest.mark.parametrize(
    ("dtype", "sums"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_sums_are_float32_or_wider(dtype, sums):
    assert sum_by_chunk(torch.ones(3, dtype=dtype), torch.zeros(3, dtype=torch.long), 1).dtype == sums


def test_a_long_sum_in_half_precision_is_not_rounded_at_every_step():
    values = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    assert sum_by_chunk(values, torch.zeros(1000, dtype=torch.long), 1).item() == 1000


def test_large_sums_are_the_same_on_every_run():
    ids = torch.randint(-1, 50, (200_000,), generator=torch.Generator().manual_seed(0))
    values = values_for(ids).requires_grad_()
    runs = []
    for _ in range(3):
        sums = sum_by_chunk(values, ids, 50)
        runs.append((sums, *torch.autograd.grad(spread_over_tokens(sums, ids).square().sum(), values)))
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0], atol=0, rtol=0)


def test_int32_ids_are_accepted():
    ids = torch.tensor([0, -1, 0], dtype=torch.int32)
    assert sum_by_chunk(torch.ones(3), ids, 1).tolist() == [2]
    assert spread_over_tokens(torch.ones(1), ids).tolist() == [1, 0, 1]
    assert chunk_sizes(ids, 1).tolist() == [2]
