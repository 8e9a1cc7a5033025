"""Log-probs of completion tokens under a causal language model, without the logits of a sequence.

Both models go through here: the backbone's hidden states at the positions that predict a completion token, then
`token_logps` with what the model's own head does to them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import ModelError
from ..objectives import Backend, LMHead, token_logps
from .trl_compat import call_through_wrapper


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside `model`, with any adapter left active."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def in_forward(model: nn.Module, accelerator: Accelerator, function: Callable[[PreTrainedModel], Any]) -> Any:
    """What `function` returns for the transformers model inside `model`, as a forward of `model` under autocast.

    Args:
        model: The student, wrapped or not.
        accelerator: Knows how to unwrap it.
        function: Is called while the parameters are whole, on all ranks or on none.
    """
    with accelerator.autocast():
        student = accelerator.unwrap_model(model)
        return call_through_wrapper(model, student, lambda unwrapped: function(causal_lm(unwrapped)))


def read_lm_head(model: PreTrainedModel) -> LMHead:
    """What `model` does to a hidden state to get logits.

    Raises:
        ModelError: If the head is more than one floating-point matrix: a 4-bit one, or one with an adapter of its own.
    """
    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer | TrainableTokensWrapper):
        raise ModelError(
            f"The head of {type(model).__name__} has an adapter of its own ({type(head).__name__}), which its weight "
            "does not show, so log-probs from that weight would leave the adapter out. Take the head out of the "
            "adapter (`target_modules`, `trainable_token_indices`), or train all of it with "
            "`modules_to_save=['lm_head']`. A teacher's adapter can be merged into it with `merge_and_unload`."
        )
    if head is None or not head.weight.is_floating_point() or head.weight.ndim != 2:
        found = "no output embedding" if head is None else f"a head of {type(head).__name__} in {head.weight.dtype}"
        raise ModelError(
            f"{type(model).__name__} has {found}, so its log-probs cannot be computed in blocks. Load it with a "
            "floating-point head, for example with `llm_int8_skip_modules=['lm_head']` in the quantization config."
        )
    config = model.config.get_text_config().to_dict()
    return LMHead(head.weight, head.bias, softcap=config.get("final_logit_softcapping"), scale=_logit_scale(config))


def with_head(model: PreTrainedModel, function: Callable[[LMHead], Any]) -> Any:
    """What `function` returns for the head of `model`, in a forward of `model`.

    It counts as the forward of the head, for which FSDP gathers its weight.
    """
    head = model.get_output_embeddings()
    return call_through_wrapper(head, head, lambda _: function(read_lm_head(model)))


def _logit_scale(config: dict[str, Any]) -> float:
    """The factor on the logits; its name differs between families."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if config.get(name) is not None:
            return config[name]
    scaling = config.get("logits_scaling")
    if scaling is None:
        return 1.0
    return scaling if config.get("model_type") == "hyperclovax" else 1 / scaling


def pack(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> dict[str, Tensor]:
    """Pad prompts and completions on the right, and say where each completion token is predicted.

    Returns:
        `input_ids` and `attention_mask`, both `[batch, length]`; `positions` `[tokens]`, the index in
        `input_ids.flatten()` at which each completion token is predicted, and `targets` `[tokens]`, that token; the
        completions one after the other. Every prompt has at least one token.
    """
    length = max((len(p) + len(c) for p, c in zip(prompts, completions, strict=True)), default=1)
    # What is masked out may have any id.
    input_ids = torch.zeros(len(prompts), length, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    positions, targets = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        attention_mask[row, :end] = 1
        start = row * length + len(prompt) - 1
        positions += range(start, start + len(completion))
        targets += completion
    packed = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "positions": torch.tensor(positions, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
    }
    return {name: to_device(tensor, device) for name, tensor in packed.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to `device`; from pinned memory and without waiting where that is CUDA."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def completion_logps(
    model: PreTrainedModel,
    packed: dict[str, Tensor],
    *,
    temperature: float = 1.0,
    block_size: int | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, " tokens"]:
    """Log-prob of each completion token of `packed`, in its order, in nats and float32.

    Only these positions reach the head. The result carries a gradient where the model's parameters do.
    """
    states = completion_states(model, packed)
    targets = packed["targets"].to(states.device)
    options = {"temperature": temperature, "block_size": block_size, "backend": backend}
    return with_head(model, lambda head: token_logps(states, head, targets, **options))


def completion_states(model: PreTrainedModel, packed: dict[str, Tensor]) -> Float[Tensor, "tokens hidden"]:
    """Final hidden state with which each completion token of `packed` is predicted, in its order, where the head is.

    The layers of `model` may be on several devices.
    """
    backbone_outputs = model.base_model(
        input_ids=packed["input_ids"], attention_mask=packed["attention_mask"], use_cache=False
    )
    states = backbone_outputs.last_hidden_state.flatten(0, 1)
    return states.index_select(0, packed["positions"].to(states.device)).to(read_lm_head(model).weight.device)


@torch.no_grad()
def check_head(model: PreTrainedModel, name: str, *, atol: float = 1e-3) -> None:
    """Compare the blockwise log-probs with the model's own logits on three tokens.

    Families differ in what they do between the hidden state and the logits. A factor that `read_lm_head` does not
    know shows here, before it can spoil a run.

    Raises:
        ModelError: If the two disagree by more than rounding allows, or embedding or head are not on a device.
    """
    _refuse_offloaded(model, name)
    ids = [2, 1, 0]
    packed = pack([ids[:1]], [ids[1:]], model.get_input_embeddings().weight.device)
    training = model.training
    model.eval()
    expected = model(input_ids=packed["input_ids"], use_cache=False).logits[0, :-1].float().log_softmax(-1)
    expected = expected.gather(1, packed["targets"].to(expected.device)[:, None])[:, 0]
    actual = completion_logps(model, packed, backend="torch").to(expected.device)
    model.train(training)
    tolerance = atol if model.dtype == torch.float32 else 0.25
    if not torch.allclose(actual, expected, atol=tolerance, rtol=tolerance):
        raise ModelError(
            f"The {name} ({type(model).__name__}) gives its own logits the log-probs {expected.tolist()}, but its "
            f"hidden states and head give {actual.tolist()}. It does something to its logits that cannot be computed "
            "in blocks here, so its scores would be wrong. Please report the model's name."
        )


def _refuse_offloaded(model: PreTrainedModel, name: str) -> None:
    for part in (model.get_input_embeddings(), model.get_output_embeddings()):
        if part is not None and part.weight.is_meta:
            raise ModelError(
                f"The {name} ({type(model).__name__}) keeps the weight of its {type(part).__name__} off every device "
                "between forwards, but it is read outside of them. Give embedding and head a device in `device_map`; "
                "layers may be offloaded."
            )
