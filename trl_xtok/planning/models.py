"""Models of tensors without content: they have every shape and dtype of the real ones, and take no memory.

The layers are those of transformers and PEFT. Only the matrices that bitsandbytes would quantize are stood in for,
since its kernels need a device.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import ConfigError, ModelError
from ..sources import in_one_line


Bits = Literal[4, 8]
# Values that share one scale in the 4-bit format of bitsandbytes, and scales that share another if they are quantized.
_BLOCK, _SCALES = 64, 256


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model that is to be loaded.

    Attributes:
        config: Its configuration.
        dtype: Dtype of the weights that are not quantized.
        bits: How bitsandbytes quantizes its linear layers; `None` for not at all.
        compute_dtype: Dtype in which quantized layers compute.
        double_quant: Whether the scales of 4-bit weights are quantized, too.
        adapter: Adapter that is trained instead of all weights.
    """

    config: PreTrainedConfig
    dtype: torch.dtype = torch.float32
    bits: Bits | None = None
    compute_dtype: torch.dtype = torch.float32
    double_quant: bool = False
    adapter: PeftConfig | None = None


def build(spec: ModelSpec) -> nn.Module:
    """The model with its adapter, on the meta device.

    Raises:
        ConfigError: If the adapter does not fit.
        ModelError: If transformers cannot build it.
    """
    with torch.device("meta"), warnings.catch_warnings():
        # PEFT asks for it by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return _build(spec)


def place(model: nn.Module) -> None:
    """Give parameters and buffers new storages on the CPU, in whatever mode is on; what is tied stays tied."""
    placed: dict[int, Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        if id(tensor) not in placed:
            placed[id(tensor)] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return placed[id(tensor)]

    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else move(buffer)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            moved = move(parameter)
            if not isinstance(moved, nn.Parameter):
                placed[id(parameter)] = moved = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            module._parameters[name] = moved


def _build(spec: ModelSpec) -> nn.Module:
    try:
        model = AutoModelForCausalLM.from_config(deepcopy(spec.config), dtype=spec.dtype)
    except (ImportError, KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"No causal language model can be built from the configuration of type {spec.config.model_type!r} "
            f"({type(error).__name__}: {error}), so its memory is not known."
        ) from error
    if spec.adapter is not None:
        try:
            # PEFT writes what it chose into the configuration.
            model = get_peft_model(model, deepcopy(spec.adapter))
        except ValueError as error:
            raise ConfigError(f"The adapter does not fit {type(model).__name__}: {in_one_line(error)}") from error
    if spec.bits is not None:
        _quantize(model, spec)
    for module in model.modules():
        # Training switches it off.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def quantized(spec: ModelSpec, quantization: Mapping[str, Any] | None) -> ModelSpec:
    """The model as the arguments of `BitsAndBytesConfig` quantize it, or else as it was saved.

    Raises:
        ModelError: If it was saved in another quantized format.
    """
    saved = spec.config.to_dict().get("quantization_config")
    if quantization is None:
        if saved is None:
            return spec
        quantization = cast("Mapping[str, Any]", saved)
        if quantization.get("quant_method") not in (None, "bitsandbytes"):
            raise ModelError(
                f"The model {spec.config.model_type!r} was quantized with {quantization['quant_method']!r}, whose "
                "memory is not known here. Known is bitsandbytes."
            )
    bits = 4 if quantization.get("load_in_4bit") else 8 if quantization.get("load_in_8bit") else None
    compute = quantization.get("bnb_4bit_compute_dtype") or torch.float32
    if isinstance(compute, str):
        compute = cast(torch.dtype, getattr(torch, compute.removeprefix("torch.")))
    if bits == 8:
        compute = torch.float16
    double = bool(quantization.get("bnb_4bit_use_double_quant"))
    return replace(spec, bits=bits, compute_dtype=compute, double_quant=double)


def causal_lm(model: Any) -> PreTrainedModel:
    """The transformers model inside, with any adapter."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of the weights and buffers that stay as they are, and of those that are trained."""
    sizes = {tensor.untyped_storage()._cdata: (0, tensor.untyped_storage().nbytes()) for tensor in model.buffers()}
    for parameter in model.parameters():
        storage = parameter.untyped_storage()
        sizes[storage._cdata] = (int(parameter.requires_grad), storage.nbytes())
    frozen, trained = (sum(size for kind, size in sizes.values() if kind == wanted) for wanted in (0, 1))
    return frozen, trained


def _quantize(model: nn.Module, spec: ModelSpec) -> None:
    """Replace what bitsandbytes would: all linear layers but the head and the matrices of the adapter."""
    kept = {id(module) for module in (causal_lm(model).get_output_embeddings(),)}
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            is_adapter = "lora_" in f"{name}.{child_name}"
            if type(child) is nn.Linear and id(child) not in kept and not is_adapter:
                setattr(module, child_name, _QuantizedLinear(child, spec))


class _QuantizedLinear(nn.Module):
    """A linear layer whose weight is a row of bytes."""

    def __init__(self, linear: nn.Linear, spec: ModelSpec):
        super().__init__()
        self.in_features, self.out_features, self._spec = linear.in_features, linear.out_features, spec
        count = linear.in_features * linear.out_features
        if spec.bits == 8:
            size = count + 4 * linear.out_features
        else:
            scales = -(-count // _BLOCK)
            size = -(-count // 2) + (scales + 4 * -(-scales // _SCALES) if spec.double_quant else 4 * scales)
        # PEFT reads the device and dtype of this name.
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        product = _QuantizedMatmul.apply(values.to(self._spec.compute_dtype), self.weight, self)
        return (product if self.bias is None else product + self.bias).to(values.dtype)

    def dequantized(self) -> Tensor:
        """The weight in the dtype in which it is multiplied."""
        return self.weight.new_empty((self.out_features, self.in_features), dtype=self._spec.compute_dtype)

    def product(self, values: Tensor) -> Tensor:
        """What the kernels make of their input, with the memory that they take."""
        if self._spec.bits == 8:
            rounded = torch.empty_like(values, dtype=torch.int8)
            sums = rounded.new_empty((*values.shape[:-1], self.out_features), dtype=torch.int32)
            return sums.to(values.dtype)
        return values @ self.dequantized().T


class _QuantizedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, layer: _QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        weight = ctx.layer.dequantized()
        return upstream.to(weight.dtype) @ weight, None, None
