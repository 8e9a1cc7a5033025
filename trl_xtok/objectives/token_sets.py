"""The probability of a few tokens together, where the log-prob of one token is known already."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .logps import LMHead, make_plan
from .torch_logps import MOST_ROWS, slices, sums_in_float32


@torch.no_grad()
def probability_of_any(
    hidden: Float[Tensor, "rows hidden"],
    lm_head: LMHead,
    tokens: Int[Tensor, " set"],
    targets: Int[Tensor, " rows"],
    target_logps: Float[Tensor, " rows"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " rows"]:
    """Probability that the next token is one of `tokens`.

    One logit and its log-prob say what all logits are normalized by, so no others are computed than those of `tokens`
    and `targets`.

    Args:
        hidden: Final hidden states.
        lm_head: The head.
        tokens: Vocabulary ids, each once.
        targets: One vocabulary id for each state.
        target_logps: Its log-prob, from [`token_logps`] at the same temperature.
        temperature: Divides the logits after scale and cap.

    Example:
        >>> hidden, head = torch.eye(2), LMHead(torch.zeros(4, 2))
        >>> known = torch.tensor([0.25, 0.25]).log()
        >>> probability_of_any(hidden, head, torch.tensor([1, 2, 3]), torch.tensor([0, 1]), known)
        tensor([0.7500, 0.7500])
    """
    plan = make_plan(lm_head, hidden, temperature, block_size=1)
    with torch.autocast(hidden.device.type, enabled=False):
        operand, bias = hidden.to(plan.dtype), lm_head.bias
        states = operand.to(plan.float_dtype)

        def weight(ids: Tensor) -> Tensor:
            return lm_head.weight[ids].to(plan.dtype).to(plan.float_dtype)

        def finish(raw: Tensor, ids: Tensor) -> Tensor:
            # Half precision rounds a logit where it rounded those of the log-prob, and nothing else.
            rounded = raw if sums_in_float32(operand) else raw.to(plan.dtype).to(plan.float_dtype)
            logits = rounded if bias is None else rounded + bias[ids]
            plan.to_logits_(logits, with_slope=False)
            return logits

        known = finish((states * weight(targets)).sum(-1), targets)
        totals = known - target_logps
        probabilities = torch.zeros_like(totals)
        for part in slices(len(tokens), MOST_ROWS):
            ids = tokens[part]
            logits = finish(states @ weight(ids).T, ids)
            probabilities += (logits - totals[:, None]).exp().sum(-1)
    return probabilities
