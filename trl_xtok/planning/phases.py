"""The phases of an optimizer step, walked through with tensors without content.

Forward and backward are those of the real layers, so what autograd keeps, what checkpointing spares and what autocast
copies need no formula. The losses are stood in for by the blocks that they hold.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from ..errors import ModelError
from .live_memory import LiveMemory
from .models import ModelSpec, build, causal_lm, place, weight_bytes
from .shards import Shards, cast_as_gathered


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a model is walked.

    Attributes:
        rows: Sequences in a batch.
        prompt: Tokens before a completion.
        completion: Tokens of a completion.
        block_bytes: Logits and what goes with them that a loss holds at a time.
    """

    rows: int
    prompt: int
    completion: int
    block_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Peak:
    """The most memory of a phase beyond the weights, and what it consists of.

    Attributes:
        total: Bytes.
        parts: Bytes of `KV cache`, `rollout logits`, `gradients`, `gathered weights` and `loss blocks` among them; the
            rest are activations.
    """

    total: int
    parts: dict[str, int]

    @property
    def activations(self) -> int:
        """What is no named part."""
        return self.total - sum(self.parts.values())


class WeightlessModel:
    """A model without content, on which the phases of a run can be walked through any number of times.

    Args:
        spec: The model.
        autocast: Dtype of autocast around its forward, if there is one.
        trains: Whether it, or its adapter, is trained.
        shards: Devices that share it out with FSDP2; 1 for a whole one.

    Attributes:
        frozen: Bytes of weights that are not trained, as one device holds them.
        trained: Bytes of weights that are, and of their gradients.
        parameters: Number of weights that are, and that one device updates.
        stays_gathered: Bytes of weights that are still gathered after a forward.

    Raises:
        ModelError: If it cannot be built.
    """

    def __init__(self, spec: ModelSpec, autocast: torch.dtype | None = None, *, trains: bool = True, shards: int = 1):
        self._autocast = autocast
        self._fake, self._memory = FakeTensorMode(), LiveMemory()
        self._model = build(spec) if trains else build(spec).requires_grad_(False)
        self._lm = causal_lm(self._model)
        self._generated: dict[Walk, Peak] = {}
        kept = cast_as_gathered(self._model, autocast) if shards > 1 else {}
        with self._fake, self._memory:
            place(self._model)
        self.frozen, self.trained = weight_bytes(self._model)
        self.parameters = sum(p.numel() for p in self._model.parameters() if p.requires_grad)
        self.stays_gathered = 0
        self._shards: Shards | None = None
        if shards > 1:
            self._shards = Shards(self._model, self._lm, kept, shards, self._memory)
            self.frozen, self.trained = self._shards.frozen, self._shards.trained
            self.parameters, self.stays_gathered = self._shards.parameters, self._shards.stays_gathered

    def generate(self, walk: Walk) -> Peak:
        """Sample completions with a KV cache, as `generate` does."""
        # Those of `generation_batch_size` are the same for every batch that is trained on.
        if walk in self._generated:
            return self._generated[walk]
        self._model.eval()
        with self._walking("sample"), torch.no_grad(), self._precision():
            memory, base = self._memory, self._memory.live
            ids = torch.zeros(walk.rows, walk.prompt + walk.completion, dtype=torch.long)
            mask = torch.ones_like(ids)
            cache = DynamicCache(config=self._lm.config.get_text_config(decoder=True))
            memory.start()
            self._next(ids[:, : walk.prompt], mask[:, : walk.prompt], cache)
            first_peak, cached = memory.peak, _cached_bytes(cache)
            # What single steps would leave behind.
            with memory.paused():
                _lengthen(cache, walk.completion - 1)
            self._next(ids[:, -1:], mask, cache)
            if memory.peak > first_peak:
                cached = _cached_bytes(cache)
        others = sum(memory.parts_at_peak.values())
        # At the peak there may be less of it than there is in the end.
        parts = memory.parts_at_peak | {"KV cache": min(cached, memory.peak - base - others)}
        self._generated[walk] = Peak(memory.peak - base, parts)
        return self._generated[walk]

    def score(self, walk: Walk) -> Peak:
        """Log-probs of completions, without a gradient."""
        self._model.eval()
        with self._walking("score"), torch.no_grad(), self._precision():
            base = self._memory.live
            self._memory.start()
            states = self._states(walk)
            _hold(self._memory, "loss blocks", walk.block_bytes, states)
            return Peak(self._memory.peak - base, dict(self._memory.parts_at_peak))

    def train(
        self,
        walk: Walk,
        *,
        checkpointing: Mapping[str, Any] | None,
        passes: int = 1,
        sync_each_batch: bool = False,
    ) -> Peak:
        """Forward and backward.

        Args:
            walk: The micro-batch.
            checkpointing: Arguments of gradient checkpointing; `None` for none.
            passes: Micro-batches of an optimizer step; gradients of earlier ones are there while later ones are made.
            sync_each_batch: Whether gradients of a sharded model are reduced to shards after every micro-batch, not
                only after the last.
        """
        self._prepare(checkpointing)
        passes = min(passes, 2)
        with self._walking("train"), self._counted_gradients():
            base = self._memory.live
            self._memory.start()
            for number in range(passes):
                if self._shards is not None:
                    self._shards.begin(reduces=sync_each_batch or number == passes - 1)
                waiting: list[Tensor] = []
                with self._precision():
                    states = self._states(walk)
                    head = cast(Any, self._lm.get_output_embeddings()).weight
                    is_tied = head is self._lm.get_input_embeddings().weight
                    if self._shards is not None:
                        self._shards.begin_loss()
                    loss = _BlockLoss.apply(states, head, self._memory, walk, waiting if is_tied else None).sum()
                del states
                if self._shards is not None:
                    self._shards.begin_backward()
                loss.backward()
                del loss
                if self._shards is not None:
                    waiting.clear()
                    self._shards.end()
            peak = Peak(self._memory.peak - base, dict(self._memory.parts_at_peak))
            self._model.zero_grad()
        return peak

    def _prepare(self, checkpointing: Mapping[str, Any] | None) -> None:
        self._model.train()
        if checkpointing is None:
            self._lm.activation_checkpointing_disable()
            return
        # There is no random state to restore.
        options = {"use_reentrant": False, **checkpointing, "preserve_rng_state": False}
        self._lm.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        if isinstance(self._model, PeftModel):
            self._lm.enable_input_require_grads()

    def _next(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> None:
        """One step of generation, and the drawing of a token."""
        out = self._lm(ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1].to(copy=True, dtype=torch.float32)
        self._memory.parts["rollout logits"] = out.logits.nbytes + 2 * logits.nbytes
        torch.multinomial(logits.softmax(-1), 1)
        self._memory.parts["rollout logits"] = 0

    def _states(self, walk: Walk) -> Tensor:
        """The hidden states that predict the completions."""
        ids = torch.zeros(walk.rows, walk.prompt + walk.completion, dtype=torch.long)
        out = self._lm.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        places = torch.zeros(walk.rows * walk.completion, dtype=torch.long)
        return out.last_hidden_state.flatten(0, 1).index_select(0, places)

    def _counted_gradients(self) -> Any:
        """Of those of a sharded model its shards keep count."""
        return _counted_gradients(self._model, self._memory) if self._shards is None else nullcontext()

    def _precision(self) -> Any:
        return nullcontext() if self._autocast is None else torch.autocast("cpu", dtype=self._autocast)

    @contextmanager
    def _walking(self, phase: str) -> Iterator[None]:
        self._memory.parts = {}
        try:
            with self._fake, self._memory, nullcontext() if self._shards is None else self._shards.gathering():
                yield
        except RuntimeError as error:
            raise ModelError(
                f"{type(self._lm).__name__} cannot be walked through without weights while it is to {phase}: {error} "
                "Either its configuration contradicts itself, or what it does depends on values, as where a router "
                "chooses experts. Its memory cannot be planned."
            ) from error


class _BlockLoss(torch.autograd.Function):
    """Stands for a loss that holds blocks of logits, and keeps what the losses of this package keep.

    The gradient of a head that is the embedding, too, waits for the other one, to which it is added in place. Autograd
    would not do so with tensors without content, so it is put into `waiting` instead.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, memory: LiveMemory, walk: Walk, waiting: list[Tensor] | None
    ) -> Tensor:
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else states.dtype
        ctx.memory, ctx.walk, ctx.trains, ctx.waiting = memory, walk, head.requires_grad, waiting
        weight = head.to(ctx.dtype)
        directions = None if ctx.trains else torch.zeros_like(states, dtype=torch.float32)
        _hold(memory, "loss blocks", walk.block_bytes, weight)
        ctx.save_for_backward(states if directions is None else directions, head)
        ctx.states_dtype = states.dtype
        return states.new_empty(len(states), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        kept, head = ctx.saved_tensors
        grad_states, grad_head = torch.zeros_like(kept, dtype=ctx.states_dtype), None
        if ctx.trains:
            grad_head = torch.zeros_like(head, dtype=torch.float32)
            _hold(ctx.memory, "loss blocks", ctx.walk.block_bytes, head.to(ctx.dtype))
            grad_head = grad_head.to(head.dtype)
            if ctx.waiting is not None:
                ctx.waiting.append(grad_head)
                grad_head = None
        return grad_states, grad_head, None, None, None


def _lengthen(cache: DynamicCache, tokens: int) -> None:
    for layer in cast("list[Any]", cache.layers):
        if layer.keys is not None and tokens > 0:
            layer.update(
                *(state.new_empty((*state.shape[:2], tokens, state.shape[3])) for state in (layer.keys, layer.values))
            )


def _cached_bytes(cache: DynamicCache) -> int:
    layers = cast("list[Any]", cache.layers)
    return sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None)


def _hold(memory: LiveMemory, name: str, size: int, beside: Tensor) -> None:
    """Take memory for a moment, while `beside` is alive."""
    memory.parts[name] = size
    beside.new_empty(size, dtype=torch.uint8)
    memory.parts[name] = 0


@contextmanager
def _counted_gradients(model: nn.Module, memory: LiveMemory) -> Iterator[None]:
    """Keep the size of the gradients that there are in `memory.parts`."""
    sizes: dict[int, int] = {}

    def count(parameter: Tensor) -> None:
        sizes[id(parameter)] = parameter.nbytes
        memory.parts["gradients"] = sum(sizes.values())

    handles = [p.register_post_accumulate_grad_hook(count) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
