"""Chunks that are joined since the cut between them is there only for what the student wrote next.

The teacher's tokens depend on the text behind them. Where they show that the student did not go on in a way in which
it mostly would have, the chunk before the cut and the one behind it say little apart: the first is improbable for the
teacher since it rules out what the second does not hold, and the second looks good for what was ruled out.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..alignment.aligner import TokenizerAligner
from ..objectives import LMHead, probability_of_any, sum_by_chunk
from .window import Cuts, MicroBatch, Rollout


def find_cuts(rollouts: Sequence[Rollout], batch: MicroBatch, aligner: TokenizerAligner) -> list[Cuts]:
    """Cuts of a micro-batch between two chunks that are trained on, by the teacher token before them.

    Only those that some text could undo; see [`Lookahead`].

    Args:
        rollouts: What `batch` was made of.
        batch: The micro-batch.
        aligner: For the two tokenizers.
    """
    chunks, places = batch.chunks.tolist(), dict[int, tuple[list[int], list[int]]]()
    firsts = {chunk: place for place, chunk in reversed([*enumerate(chunks)])}
    offset = 0
    for alignment in (rollout.alignment for rollout in rollouts):
        neighbours = pairwise(zip(alignment.teacher_ids, alignment.teacher_chunks, strict=True))
        for (token_id, chunk), (_, following) in neighbours:
            first = firsts.get(following + offset, 0)
            # Text that was dropped may stand between them on the student's side.
            if 0 <= chunk < following and first > 0 and chunks[first - 1] == chunk + offset:
                begun, tokens = places.setdefault(token_id, ([], []))
                begun.append(following + offset)
                tokens.append(first)
        offset += alignment.num_chunks
    return [
        Cuts(torch.tensor(undoing), *map(torch.tensor, found))
        for token_id, found in places.items()
        if (undoing := aligner.undoing(token_id))
    ]


@torch.no_grad()
def find_joins(
    states: Float[Tensor, "tokens hidden"],
    head: LMHead,
    logps: Float[Tensor, " tokens"],
    batch: MicroBatch,
    *,
    temperature: float,
    max_lookahead: float,
) -> Bool[Tensor, " chunks"]:
    """Chunks that go on with the one before them.

    Whether they do depends on the text before the cut and not on what was written behind it.

    Args:
        states: Hidden state with which the student predicts each completion token of the micro-batch.
        head: The student's head.
        logps: Log-prob of each of these tokens.
        batch: The micro-batch.
        temperature: At which the log-probs were taken.
        max_lookahead: Largest probability of undoing a cut with which it stays.
    """
    joins = torch.zeros(batch.num_chunks, dtype=torch.bool, device=states.device)
    for cuts in batch.cuts:
        # A tokenizer can have more tokens than its model.
        undoing = cuts.undoing[cuts.undoing < len(head.weight)].to(states.device)
        chunks, tokens = cuts.chunks.to(states.device), cuts.tokens.to(states.device)
        targets, known = batch.packed["targets"][tokens], logps[tokens]
        undone = probability_of_any(states[tokens], head, undoing, targets, known, temperature=temperature)
        joins[chunks] = undone > max_lookahead
    return joins


def join_chunks(batch: MicroBatch, joins: Bool[Tensor, " chunks"] | None) -> MicroBatch:
    """The micro-batch with chunks joined to the one before them, which keeps its number; theirs stays without tokens.

    Distributions are then compared where a joined chunk begins, and not within it.
    """
    if joins is None:
        return batch
    numbers = torch.arange(batch.num_chunks, device=joins.device)
    heads = numbers.masked_fill(joins, 0).cummax(0).values
    # The last entries are those of chunk -1.
    head_of = torch.cat([heads, heads.new_full((1,), -1)])
    goes_on = torch.cat([joins[1:], joins.new_zeros(1)])
    starts = batch.starts
    if starts is not None:
        starts = starts.without(joins[starts.chunks], goes_on[starts.chunks])
    return replace(
        batch,
        chunks=head_of[batch.chunks],
        teacher_logps=sum_by_chunk(batch.teacher_logps, heads, batch.num_chunks).to(batch.teacher_logps.dtype),
        starts=starts,
    )
