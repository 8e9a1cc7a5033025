"""Rollouts: completions that the student has just sampled."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from .config import CrossTokenizerGKDConfig
from .data import left_pad, unpad
from .trl_compat import GKDTrainer


# Takes completions, by the place of their prompt, while others are still to be written.
OnWritten = Callable[[Mapping[int, list[int]]], None]
# Keeps evaluation from drawing what some training step draws.
_EVALUATION = 1_000_003


def end_ids(generation_config: GenerationConfig) -> frozenset[int]:
    """The tokens at which generation ends."""
    ids = generation_config.eos_token_id
    return frozenset([ids] if isinstance(ids, int) else ids or ())


@contextmanager
def sampling_seed(*numbers: int, device: torch.device) -> Iterator[None]:
    """Make sampling depend on `numbers` alone, and leave the random state as it was.

    A resumed run then samples what the uninterrupted one would have sampled, whatever the state it was restored to.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Python hashes integers, and tuples of them, alike in every process.
        torch.manual_seed(hash(numbers) % 2**63)
        yield


class RandomState:
    """The random state that a step begins with.

    Args:
        device: Where the student is.
    """

    def __init__(self, device: torch.device):
        self._device, self._host = device, torch.get_rng_state()
        self._on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Go back to it if the block fails: a step that is done again then has the same dropout."""
        try:
            yield
        except Exception:
            torch.set_rng_state(self._host)
            if self._on_device is not None:
                torch.cuda.set_rng_state(self._on_device, self._device)
            raise


def evaluation_seed(args: CrossTokenizerGKDConfig, batch: int) -> AbstractContextManager[None]:
    """Make what is sampled for an evaluation batch the same in every evaluation.

    Args:
        args: The training arguments.
        batch: Number of the batch in the evaluation.
    """
    return sampling_seed(args.seed, _EVALUATION + batch, args.process_index, device=args.device)


@contextmanager
def _only(generation_config: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """Keep the model's own generation defaults out of the rollouts.

    `generate` takes whatever `generation_config` leaves open from the model's own: a repetition penalty there would
    make the rollouts off-policy without a word.
    """
    own = model.generation_config
    model.generation_config = generation_config
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def generate_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    generation_config: GenerationConfig,
    batch_size: int,
    device: torch.device,
    on_written: OnWritten | None = None,
) -> list[list[int]]:
    """Sample one completion for each prompt.

    Args:
        model: The student, unwrapped and with gradient checkpointing off.
        prompts: Token ids of each prompt, not padded.
        generation_config: How to sample; `eos_token_id` holds every stop id.
        batch_size: Number of completions generated together.
        device: Where the model takes its input.
        on_written: Is given the completions that were generated together, by the place of their prompt.

    Returns:
        The ids exactly as sampled, the stop token included if one was.
    """
    places = list(range(len(prompts)))
    if len(places) > batch_size:
        # Less padding. What needs most memory comes first.
        places.sort(key=lambda place: len(prompts[place]), reverse=True)
    completions: dict[int, list[int]] = {}
    training = model.training
    model.eval()
    with _only(generation_config, model):
        for start in range(0, len(places), batch_size):
            group = places[start : start + batch_size]
            ids, mask = left_pad([prompts[place] for place in group], generation_config.pad_token_id)
            inputs = {"prompts": ids.to(device), "prompt_attention_mask": mask.to(device)}
            written = dict(zip(group, _completions_of(model, inputs, generation_config), strict=True))
            completions |= written
            if on_written is not None:
                on_written(written)
    model.train(training)
    return [completions[place] for place in range(len(prompts))]


def _completions_of(
    model: PreTrainedModel, inputs: dict[str, Tensor], generation_config: GenerationConfig
) -> Iterator[list[int]]:
    ids, mask, _ = GKDTrainer.generate_on_policy_outputs(model, inputs, generation_config)
    length = inputs["prompts"].shape[1]
    return unpad(ids[:, length:], mask[:, length:])
