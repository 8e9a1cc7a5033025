"""A student that FSDP2 shards: what each device keeps, and what it gathers and reduces while the student is walked.

The groups are those that Accelerate makes, and the order of events is that of `fully_shard` with its own prefetching.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .live_memory import LiveMemory


@dataclass(eq=False, slots=True)
class _Group:
    """Parameters that are gathered together.

    Attributes:
        module: Its forward gathers them.
        parameters: All of them.
        size: Bytes when they are gathered.
        stays: Whether they stay gathered from the forward to the backward.
        whole: Stands for them while they are gathered.
        received: Stands for what was received of them, and is not copied yet.
        in_backward: Whether its backward has begun.
    """

    module: nn.Module
    parameters: list[nn.Parameter]
    size: int
    stays: bool
    whole: Tensor | None = None
    received: Tensor | None = None
    in_backward: bool = False


def cast_as_gathered(model: nn.Module, half: torch.dtype | None) -> dict[str, torch.dtype]:
    """Give parameters the dtype in which they are gathered; return by name the one in which shards are kept.

    Accelerate keeps what is trained in float32 if the run is in half precision, but for students in 4 bits. Rows of
    bytes, which stand for quantized weights, are never sharded, and not in what is returned.
    """
    parameters = dict(model.named_parameters())
    has_quantized = any(not parameter.is_floating_point() for parameter in parameters.values())
    kept: dict[str, torch.dtype] = {}
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            continue
        is_master = half is not None and parameter.requires_grad and not has_quantized
        kept[name] = torch.float32 if is_master else parameter.dtype
        parameter.data = parameter.data.to(half or parameter.dtype)
    return kept


class Shards:
    """The shards of one device.

    Args:
        model: The student with its adapter, whose parameters have the dtype in which they are gathered.
        lm: The transformers model in it.
        kept: Dtype of the shards by name of the parameter; the others are on every device.
        count: Devices.
        memory: Counts what is gathered and reduced.

    Attributes:
        frozen: Bytes of what is not trained, buffers included.
        trained: Bytes of the shards of what is trained, and of those of its gradients.
        parameters: Number of trained weights that this device updates.
        stays_gathered: Bytes that stay gathered after a forward.
    """

    def __init__(
        self, model: nn.Module, lm: PreTrainedModel, kept: dict[str, torch.dtype], count: int, memory: LiveMemory
    ):
        self._memory, self._count = memory, count
        self.frozen = sum(buffer.nbytes for buffer in model.buffers())
        self.trained = self.parameters = 0
        self._shard_sizes: dict[int, int] = {}
        for name, parameter in model.named_parameters():
            if name not in kept:
                self.frozen += parameter.nbytes
                continue
            size = self._numel(parameter) * kept[name].itemsize
            if parameter.requires_grad:
                self._shard_sizes[id(parameter)] = size
                self.trained += size
                self.parameters += self._numel(parameter)
            else:
                self.frozen += size
        sharded = {id(parameter) for name, parameter in model.named_parameters() if name in kept}
        self._groups = [*self._find_groups(lm, sharded, has_adapter=model is not lm)]
        self._rest = self._group(model, sharded, stays=True)
        self.stays_gathered = sum(group.size for group in (*self._groups, self._rest) if group.stays)
        self._forget()

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Gather and reduce as the forwards and backwards inside ask for it; nothing is gathered before or after."""
        self._forget()
        handles: list[Any] = []
        for group in self._groups:
            handles.append(group.module.register_forward_pre_hook(self._before_forward(group)))
            handles.append(group.module.register_forward_hook(self._after_forward(group)))
        for parameter in (p for group in (*self._groups, self._rest) for p in group.parameters if p.requires_grad):
            handles.append(parameter.register_post_accumulate_grad_hook(self._count_gradient))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._forget()

    def begin(self, *, reduces: bool) -> None:
        """A micro-batch begins; `reduces` says whether its gradients, with those before, are reduced to shards."""
        self._reduces = reduces

    def begin_loss(self) -> None:
        """The head is read, as in its own forward."""
        for group in self._groups:
            if group.stays:
                self._gather(group, in_forward=True)

    def begin_backward(self) -> None:
        """The forward has ended, and the backward begins with the head."""
        self._held = None
        for group in self._groups:
            if group.stays:
                self._order.append(group)
                self._before_backward(group)

    def end(self) -> None:
        """A backward has ended: reduce and free what is left."""
        for group in (*self._groups, self._rest):
            self._after_backward(group)
            group.received = None
        self._reduced = None
        self._order.clear()
        self._record()

    def _forget(self) -> None:
        self._reduces = True
        self._held: Tensor | None = None
        self._reduced: Tensor | None = None
        self._gradients: dict[int, int] = {}
        self._shards: dict[int, Tensor] = {}
        self._order: list[_Group] = []
        for group in (*self._groups, self._rest):
            group.whole = group.received = None
            group.in_backward = False

    def _find_groups(self, lm: PreTrainedModel, sharded: set[int], *, has_adapter: bool) -> Iterator[_Group]:
        layers = set(cast("set[str] | list[str] | None", lm._no_split_modules) or ())
        for module in lm.modules():
            if type(module).__name__ in layers:
                yield self._group(module, sharded, stays=False)
        # Beside an adapter Accelerate does not find the last norm.
        norms = [each for each in lm.base_model.children() if "Norm" in type(each).__name__ and not has_adapter][-1:]
        embedding, head = (cast(Any, each) for each in (lm.get_input_embeddings(), lm.get_output_embeddings()))
        if embedding.weight is head.weight:
            yield self._group(embedding, sharded, *norms, stays=True)
        else:
            yield self._group(embedding, sharded, stays=False)
            yield self._group(norms[0] if norms else head, sharded, head, stays=True)

    def _group(self, module: nn.Module, left: set[int], *more: nn.Module, stays: bool) -> _Group:
        """Those of `left` in these modules, which are taken from it."""
        found = {id(p): p for each in (module, *more) for p in each.parameters() if id(p) in left}
        left.difference_update(found)
        size = sum(self._numel(p) * self._count * p.itemsize for p in found.values())
        return _Group(module, [*found.values()], size, stays)

    def _numel(self, parameter: Tensor) -> int:
        """Numbers of a shard; rows are shared out, and the last devices have fewer or only padding."""
        rows = parameter.shape[0] if parameter.ndim else 1
        return -(-rows // self._count) * (parameter.numel() // max(rows, 1))

    def _before_forward(self, group: _Group) -> Any:
        def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            for each in (self._rest, group):
                self._gather(each, in_forward=not group.in_backward)
            if group.in_backward or not args or not args[0].requires_grad:
                return args
            return _AtGradient.apply(args[0], lambda: self._after_backward(group)), *args[1:]

        return gather

    def _after_forward(self, group: _Group) -> Any:
        def free(_: nn.Module, __: Any, output: Any) -> None:
            if group.in_backward:
                return
            if not group.stays:
                group.whole = None
            self._record()
            if group.stays or not torch.is_grad_enabled():
                return
            self._order.append(group)
            states = output[0] if isinstance(output, tuple) else output
            if states.requires_grad:
                states.register_hook(lambda _: self._before_backward(group))

        return free

    def _before_backward(self, group: _Group) -> None:
        group.in_backward, self._held = True, None
        self._gather(group, in_forward=False)
        place = self._order.index(group)
        if place > 0 and self._order[place - 1].whole is None:
            # It is on its way while this one is worked on.
            self._order[place - 1].received = self._take(self._order[place - 1].size, "gathered weights")

    def _gather(self, group: _Group, *, in_forward: bool) -> None:
        if group.whole is not None or not group.size:
            return
        received = group.received
        if received is None:
            received = self._take(group.size, "gathered weights")
        group.whole = self._take(group.size, "gathered weights")
        # In a forward it is given up only once the next ones are received and copied.
        self._held = received if in_forward else None
        group.received = received = None
        self._record()

    def _after_backward(self, group: _Group) -> None:
        group.whole, group.in_backward = None, False
        self._record()
        reduced = [p for p in group.parameters if p.grad is not None] if self._reduces else []
        if not reduced:
            return
        # Those of one group are there at a time.
        self._reduced = None
        self._record()
        whole = sum(self._numel(parameter) * self._count * parameter.itemsize for parameter in reduced)
        self._reduced = self._take(whole, "gradients")
        # FSDP refers to the last one for a little longer.
        last = reduced[-1].grad
        for parameter in reduced:
            parameter.grad = None
            if parameter is not reduced[-1]:
                del self._gradients[id(parameter)]
        self._record()
        for parameter in reduced:
            shard = self._take(self._shard_sizes[id(parameter)], "gradients")
            self._shards.setdefault(id(parameter), shard)
        del last, self._gradients[id(reduced[-1])]
        self._record()

    def _count_gradient(self, parameter: Tensor) -> None:
        self._gradients[id(parameter)] = parameter.nbytes
        self._record()

    def _take(self, size: int, name: str) -> Tensor:
        """Take memory that is a part of this name."""
        self._memory.parts[name] = self._memory.parts.get(name, 0) + size
        return torch.empty(size, dtype=torch.uint8)

    def _record(self) -> None:
        """Bring the parts up to date."""
        held = [tensor for group in (*self._groups, self._rest) for tensor in (group.whole, group.received)]
        gathered = {id(tensor): tensor.nbytes for tensor in (*held, self._held) if tensor is not None}
        reduced = 0 if self._reduced is None else self._reduced.nbytes
        shards = sum(shard.nbytes for shard in self._shards.values())
        self._memory.parts["gathered weights"] = sum(gathered.values())
        self._memory.parts["gradients"] = sum(self._gradients.values()) + reduced + shards


class _AtGradient(torch.autograd.Function):
    """Its input, and a call once the gradient of that is known."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, call: Any) -> Tensor:
        ctx.call = call
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call()
        return grad_outputs[0], None
