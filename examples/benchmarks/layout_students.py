"""Memory of a student on one GPU as `trl-xtok plan` counts it, where rollouts and teacher are elsewhere."""

from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from transformers import LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from trl_xtok.objectives.logps import default_block_size
from trl_xtok.planning.models import Bits, ModelSpec
from trl_xtok.planning.phases import Walk, WeightlessModel
from trl_xtok.planning.plan import ALLOCATOR_LOSS, CONTEXT_BYTES
from trl_xtok.planning.run_spec import OPTIMIZER_STATE

from .layout_models import Shape


_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
ITEMS = (
    "frozen weights",
    "trained weights",
    "optimizer state",
    "gradients",
    "DDP buckets",
    "gathered weights",
    "activations and loss blocks",
    "overhead",
)


@dataclass(frozen=True, slots=True)
class Training:
    """How a student is trained.

    Attributes:
        label: What a table calls it.
        dtype: Dtype of the weights as they are loaded.
        lora: Whether an adapter (rank 16, all linear layers) is trained instead of all weights.
        bits: 4 for NF4 of bitsandbytes.
        optim: The optimizer.
    """

    label: str
    dtype: torch.dtype = torch.bfloat16
    lora: bool = False
    bits: Bits | None = None
    optim: str = "adamw_torch_fused"

    @property
    def bytes_per_weight(self) -> float:
        """Bytes of a trained weight, its gradient, the copy of that for DDP, and its state in the optimizer."""
        return 3 * self.dtype.itemsize + OPTIMIZER_STATE[self.optim]


LORA = Training("LoRA, bfloat16", lora=True)
FULL = Training("full, float32, AdamW", dtype=torch.float32)
TRAININGS = (
    LORA,
    Training("QLoRA, NF4", lora=True, bits=4),
    FULL,
    Training("full, bfloat16, 8-bit AdamW", optim="adamw_bnb_8bit"),
)


def student_memory(
    shape: Shape, training: Training, *, rows: int, prompt: int, completion: int, shards: int = 1
) -> dict[str, float]:
    """Bytes of each of `ITEMS` at the peak of training with gradient checkpointing and bfloat16 autocast.

    Rollouts and teacher are elsewhere.

    Args:
        shape: The student.
        training: How it is trained.
        rows: Completions of a micro-batch.
        prompt: Tokens of a prompt.
        completion: Tokens of a completion.
        shards: GPUs that share the student out (FSDP2, gradients reduced in every micro-batch); 1 is for DDP.
    """
    walk = Walk(rows, prompt, completion, _block_bytes(shape))
    if training.lora and shards == 1:
        # With an adapter every layer adds the same, which saves most of the time. Without one the peak is at the head
        # of a flat model and inside the layers of a deep one.
        few, more = (_counted(replace(shape, num_hidden_layers=layers), training, walk) for layers in (1, 2))
        further = shape.num_hidden_layers - 2
        items = {name: more[name] + further * (more[name] - few[name]) for name in more}
    else:
        items = _counted(shape, training, walk, shards)
    return _with_overhead(items)


def with_more_shards(items: dict[str, float], times: float) -> dict[str, float]:
    """What `student_memory` says of a sharded student, for so many times as many GPUs.

    What is gathered and reduced is the same on any number of them.
    """
    shares = ("frozen weights", "trained weights", "optimizer state")
    fewer = {name: items[name] / times for name in shares}
    fewer["gradients"] = items["gradients"] - items["trained weights"] + fewer["trained weights"]
    return _with_overhead({name: size for name, size in (items | fewer).items() if name != "overhead"})


def _with_overhead(items: dict[str, float]) -> dict[str, float]:
    return items | {"overhead": CONTEXT_BYTES + ALLOCATOR_LOSS * sum(items.values())}


def _counted(shape: Shape, training: Training, walk: Walk, shards: int = 1) -> dict[str, float]:
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if training.lora else None
    spec = ModelSpec(_config(shape), training.dtype, training.bits, torch.bfloat16, adapter=adapter)
    student = WeightlessModel(spec, torch.bfloat16, shards=shards)
    # In the second of two micro-batches the gradients of the first are there.
    peak = student.train(walk, checkpointing={}, passes=2, sync_each_batch=True)
    gradients = student.trained if shards == 1 else peak.parts["gradients"]
    return {
        "frozen weights": student.frozen,
        "trained weights": student.trained,
        "optimizer state": student.parameters * OPTIMIZER_STATE[training.optim],
        "gradients": gradients,
        "DDP buckets": student.trained if shards == 1 else 0,
        "gathered weights": peak.parts.get("gathered weights", 0),
        "activations and loss blocks": peak.activations + peak.parts.get("loss blocks", 0),
    }


def _block_bytes(shape: Shape) -> int:
    """Logits of a block, and a copy of them in half precision."""
    return 6 * shape.vocab_size * default_block_size(shape.vocab_size)


def _config(shape: Shape) -> PreTrainedConfig:
    return _CONFIGS[shape.model_type](
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tie_word_embeddings,
    )
