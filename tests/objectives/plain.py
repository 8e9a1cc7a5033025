"""The plain formula that `token_logps` is compared with, operands for both, and what memory they take."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def plain_logits(hidden, head, temperature=1.0):
    logits = head.scale * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / temperature


def plain_logps(hidden, head, targets, temperature=1.0):
    logps = plain_logits(hidden, head, temperature).log_softmax(-1)
    return logps.gather(1, targets.clamp(min=0)[:, None]).squeeze(1).masked_fill(targets == -100, 0)


def assert_same_with_gradients(actual, expected, inputs, upstream, *, gradient_error=1e-4):
    """Values to 1e-5 and gradients to `gradient_error`, or to a share of 1e-4 of each."""
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        atol=gradient_error,
        rtol=1e-4,
    )


def operands(tokens=13, vocab=37, hidden=8, *, trains=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(tokens, hidden, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator, dtype=dtype).requires_grad_(trains)
    bias = torch.randn(vocab, generator=generator, dtype=dtype).requires_grad_(trains)
    targets = torch.randint(vocab, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator, dtype=dtype)
    return states, weight, bias, targets, upstream


class TensorSizes(TorchDispatchMode):
    """Operations while the mode is on, the shapes of all tensors that they return, and how much of that was alive.

    Attributes:
        peak: Most numbers that lived at one time in storages that were made while the mode was on, views counted once.
    """

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.operations = []
        self.peak = 0
        self._alive = {}
        self._born = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations.append(func.overloadpacket.__name__)
        self.shapes += [leaf.shape for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf, inputs=[x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)])
        return result

    def _watch(self, tensor, inputs):
        pointer = tensor.untyped_storage().data_ptr()
        self._alive[id(tensor)] = weakref.ref(tensor)
        if any(pointer == each.untyped_storage().data_ptr() for each in inputs):
            # Nothing is larger than before.
            return
        self._born.add(pointer)
        tensors = [found for each in self._alive.values() if (found := each()) is not None]
        self._alive = {id(each): weakref.ref(each) for each in tensors}
        sizes = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() // 4 for each in tensors}
        self._born &= sizes.keys()
        self.peak = max(self.peak, sum(size for pointer, size in sizes.items() if pointer in self._born))

    @property
    def largest(self):
        return max(shape.numel() for shape in self.shapes)
