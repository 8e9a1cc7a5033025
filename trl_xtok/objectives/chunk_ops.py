"""Sums over chunks, and chunk values spread over tokens.

Everything is flat: the tokens of a micro-batch stand in one dimension, and chunk numbers are unique over the
micro-batch. A token whose chunk number is -1 is in no chunk. Sums are float32, or float64 for float64 values, and the
same on every run.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sum_by_chunk(
    values: Float[Tensor, " tokens"], chunk_ids: Int[Tensor, " tokens"], num_chunks: int
) -> Float[Tensor, " {num_chunks}"]:
    """Add up the token values of each chunk; a chunk without tokens sums to 0.

    Args:
        values: One number per token, for example its log-prob.
        chunk_ids: The chunk that each token belongs to, in any order, or -1 for none.
        num_chunks: Length of the result; greater than every chunk number.

    Example:
        >>> sum_by_chunk(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, -1, 2]), 3)
        tensor([3., 0., 8.])
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    # Tokens outside every chunk are added to a spare last entry, which is then dropped.
    sums = values.new_zeros(num_chunks + 1)
    ids = _with_spare(chunk_ids, num_chunks)
    # CUDA adds in no fixed order in `scatter_add`, the CPU in `index_put`.
    if values.is_cuda:
        return sums.index_put((ids,), values, accumulate=True)[:num_chunks]
    return sums.scatter_add(0, ids, values)[:num_chunks]


def spread_over_tokens(
    chunk_values: Float[Tensor, " chunks"], chunk_ids: Int[Tensor, " tokens"], fill: float = 0.0
) -> Float[Tensor, " tokens"]:
    """Give every token the value of its chunk.

    Args:
        chunk_values: One number per chunk.
        chunk_ids: The chunk that each token belongs to, or -1 for none.
        fill: What tokens in no chunk get.

    Example:
        >>> spread_over_tokens(torch.tensor([5.0, 7.0]), torch.tensor([1, 1, -1, 0]))
        tensor([7., 7., 0., 5.])
    """
    values = torch.cat([chunk_values, chunk_values.new_full((1,), fill)])
    ids = _with_spare(chunk_ids, len(chunk_values))
    # The backward of either adds up token gradients, as in `sum_by_chunk`.
    return values[ids] if values.is_cuda else values.gather(0, ids)


def chunk_sizes(chunk_ids: Int[Tensor, " tokens"], num_chunks: int) -> Int[Tensor, " {num_chunks}"]:
    """Number of tokens in each chunk.

    Example:
        >>> chunk_sizes(torch.tensor([0, 0, -1, 2]), 3)
        tensor([2, 0, 1])
    """
    ids = _with_spare(chunk_ids, num_chunks)
    return ids.new_zeros(num_chunks + 1).scatter_add(0, ids, torch.ones_like(ids))[:num_chunks]


def _with_spare(chunk_ids: Tensor, num_chunks: int) -> Tensor:
    return chunk_ids.long().masked_fill(chunk_ids < 0, num_chunks)
