"""Sizes of dense decoder models from the shapes in their `config.json`: weights, KV cache, arithmetic."""

import json
from dataclasses import dataclass
from pathlib import Path

from trl_xtok.errors import ModelError


@dataclass(frozen=True, slots=True)
class Shape:
    """A model whose layers are those of Llama, Qwen2 or Qwen3. The names are those of `config.json`.

    Attributes:
        name: What it is called.
        vocab_size: Rows of the embedding and of the head.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the MLP, which has three matrices.
        num_hidden_layers: Layers.
        num_attention_heads: Heads of queries.
        num_key_value_heads: Heads of keys and values.
        head_dim: Width of a head.
        tie_word_embeddings: Whether the head is the embedding.
        model_type: `llama`, `qwen2` (with biases of queries, keys and values) or `qwen3` (with their norms).
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 8
    head_dim: int = 128
    tie_word_embeddings: bool = False
    model_type: str = "llama"

    @property
    def linear(self) -> int:
        """Weights of the matrices inside the layers, which every token is multiplied by."""
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        return self.num_hidden_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        """All weights."""
        vectors = 2 * self.hidden_size
        if self.model_type == "qwen2":
            vectors += (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim
        if self.model_type == "qwen3":
            vectors += 2 * self.head_dim
        embeddings = self.head if self.tie_word_embeddings else 2 * self.head
        return self.linear + embeddings + self.num_hidden_layers * vectors + self.hidden_size

    def weight_bytes(self, bytes_per_weight: float = 2) -> float:
        """Bytes of the weights; only the matrices inside the layers are ever in less than two bytes."""
        return 2 * (self.parameters - self.linear) + bytes_per_weight * self.linear

    def kv_bytes(self, bytes_per_value: float = 2) -> float:
        """Bytes of the keys and values of one token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value

    def forward_flops(self, context: float, *, head: bool = True) -> float:
        """Floating-point operations of one token's forward.

        Args:
            context: Tokens that it attends to.
            head: Whether it reaches the head.
        """
        attention = 4 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return 2 * self.linear + attention + (2 * self.head if head else 0)


# From the `config.json` beside the weights of each on the Hugging Face Hub.
MODELS = {
    shape.name: shape
    for shape in (
        Shape("Llama-3.2-1B", 128256, 2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True),
        Shape("Llama-3.2-3B", 128256, 3072, 8192, 28, 24, tie_word_embeddings=True),
        Shape("Llama-3.1-8B", 128256, 4096, 14336, 32, 32),
        Shape("Qwen2.5-14B", 152064, 5120, 13824, 48, 40, model_type="qwen2"),
        Shape("Qwen2.5-32B", 152064, 5120, 27648, 64, 40, model_type="qwen2"),
        Shape("Qwen3-32B", 151936, 5120, 25600, 64, 64, model_type="qwen3"),
        Shape("Llama-3.1-70B", 128256, 8192, 28672, 80, 64),
        Shape("Qwen2.5-72B", 152064, 8192, 29568, 80, 64, model_type="qwen2"),
    )
}


def find_model(name: str) -> Shape:
    """The model of this name here, or whose `config.json` this is.

    Raises:
        ModelError: If there is none, or its layers are not of a kind that is known here.
    """
    if name in MODELS:
        return MODELS[name]
    if not Path(name).is_file():
        raise ModelError(f"{name!r} is neither a `config.json` nor one of {', '.join(MODELS)}.")
    config = json.loads(Path(name).read_text())
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise ModelError(f"{name} is about a model of type {kind!r}. Known are the layers of llama, qwen2 and qwen3.")
    heads = config["num_attention_heads"]
    return Shape(
        name=Path(name).resolve().parent.name,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        model_type=kind,
    )
