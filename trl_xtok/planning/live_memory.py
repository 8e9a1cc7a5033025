"""How many bytes of tensors are alive, and the most that there were, while a program runs on tensors without content.

Every operation goes by here. A storage counts from the operation that makes it until nothing refers to it.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


_DEVICE = torch.ops.prim.device.default


class LiveMemory(TorchDispatchMode):
    """Counts the storages of all tensors that operations return, as an allocator without losses would.

    Attributes:
        live: Bytes that are alive.
        peak: The most since `start`.
        parts: Bytes by name, as the caller keeps them up to date, of what is alive.
        parts_at_peak: What `parts` was at the peak.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.parts: dict[str, int] = {}
        self.parts_at_peak: dict[str, int] = {}
        self._counts = True
        self._storages: dict[int, weakref.ref[UntypedStorage]] = {}

    def start(self) -> None:
        """Forget the peak."""
        self.peak, self.parts_at_peak = self.live, dict(self.parts)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Follow what is alive, but without a new peak."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            # Asked for as often as anything is computed.
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for leaf in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()

        def free(_: Any) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, free)
        self.live += size
        if self._counts and self.live > self.peak:
            self.peak, self.parts_at_peak = self.live, dict(self.parts)
