"""The plain formula that `token_logps` is compared with, and operands for both."""

import torch


def plain_logps(hidden, head, targets, temperature=1.0):
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logps = (logits / temperature).log_softmax(-1).gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    return logps.masked_fill(targets == -100, 0)


def operands(tokens=13, vocab=37, hidden=8, *, trains=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator, dtype=dtype).requires_grad_(trains)
    bias = torch.randn(vocab, generator=generator, dtype=dtype).requires_grad_(trains)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator, dtype=dtype)
    return states, weight, bias, targets, upstream
