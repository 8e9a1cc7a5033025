"""The teacher: who scores the completions.

A teacher needs to say one number per token of its own encoding of a completion. `LocalTeacher` computes it with a
transformers model, quantized or not; `ServedTeacher` asks a server.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from ..errors import ConfigError, ModelError
from ..objectives import LMHead, token_logps
from .config import CrossTokenizerGKDConfig
from .loading import Reach, reach_of, teacher_init_kwargs
from .scoring import causal_lm, check_head, completion_states, pack, read_lm_head
from .window import Rollout


class Teaching(Protocol):
    """One teacher or several.

    Attributes:
        model: The weights, or what stands in for them if they are not here.
    """

    model: nn.Module

    def forget(self) -> None:
        """What was expected is not needed any more: an optimizer step is over, or ended in the midst."""
        ...

    def on_device(self) -> AbstractContextManager[None]:
        """Around the scoring of micro-batches, of which all processes do the same number."""
        ...


class Teacher(Teaching, Protocol):
    """Whoever can score completions in the teacher's tokens.

    Attributes:
        name: What the user calls it; empty if it has no name.
        reach: How far it can read. It has no score for what is beyond.
    """

    name: str
    reach: Reach

    def expect(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        """What it will be asked for, as early as that is known; once more to have it after all that is expected."""
        ...

    def token_logps(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " teacher_tokens"]:
        """Log-prob of each completion token, in nats, the completions one after the other; NaN where unknown."""
        ...


class _Several:
    """Several teachers, where none in particular is meant."""

    def __init__(self, teachers: Mapping[str, Teacher]):
        self.model = nn.ModuleList(teacher.model for teacher in teachers.values())
        self._teachers = [*teachers.values()]

    def forget(self) -> None:
        """See [`Teaching.forget`]."""
        for teacher in self._teachers:
            teacher.forget()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """See [`Teaching.on_device`]."""
        with ExitStack() as stack:
            for teacher in self._teachers:
                stack.enter_context(teacher.on_device())
            yield


def all_of(teachers: Mapping[str, Teacher]) -> Teaching:
    """The only teacher, or what stands for all of them."""
    return next(iter(teachers.values())) if len(teachers) == 1 else _Several(teachers)


def token_logps_by_teacher(
    rollouts: Sequence[Rollout], teachers: Sequence[Teacher]
) -> Float[Tensor, " teacher_tokens"]:
    """Log-prob of each completion token in the tokens of the teacher that scores it, the rollouts one after the other.

    Args:
        rollouts: Each names its teacher by number.
        teachers: In the order of their numbers.
    """
    if len(teachers) == 1:
        return _token_logps(teachers[0], rollouts)
    rows: dict[int, Tensor] = {}
    for number, teacher in enumerate(teachers):
        of = [place for place, rollout in enumerate(rollouts) if rollout.teacher == number]
        if of:
            logps = _token_logps(teacher, [rollouts[place] for place in of]).cpu()
            rows |= zip(of, logps.split([len(rollouts[place].alignment.teacher_ids) for place in of]), strict=True)
    return torch.cat([rows[place] for place in range(len(rollouts))])


def expect_by_teacher(windows: Sequence[Sequence[Rollout]], teachers: Sequence[Teacher]) -> None:
    """Tell each teacher which rollouts it will score.

    Args:
        windows: Rollouts in the order in which their scores are needed, those that are needed together in one part.
            Each names its teacher by number.
        teachers: In the order of their numbers.
    """
    # The longest first: they take longest, and those of a request are of similar length.
    ordered = [each for rollouts in windows for each in sorted(rollouts, key=_length, reverse=True)]
    for number, teacher in enumerate(teachers):
        teacher.expect(*in_its_tokens([rollout for rollout in ordered if rollout.teacher == number]))


def _length(rollout: Rollout) -> int:
    return len(rollout.teacher_prompt_ids) + len(rollout.alignment.teacher_ids)


def _token_logps(teacher: Teacher, rollouts: Sequence[Rollout]) -> Tensor:
    return teacher.token_logps(*in_its_tokens(rollouts))


def in_its_tokens(rollouts: Sequence[Rollout]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of rollouts that one teacher scores."""
    prompts = [rollout.teacher_prompt_ids for rollout in rollouts]
    return prompts, [rollout.alignment.teacher_ids for rollout in rollouts]


class LocalTeacher:
    """Scores with a model in this process.

    Args:
        model: The teacher, on its device.
        args: Say how to score, in `scoring`.
        name: What the user calls it; empty if it has no name.

    Attributes:
        name: The same.
        model: The teacher, in evaluation mode and without gradients.
        reach: How far it can read. What is beyond gets NaN.

    Raises:
        ModelError: If it cannot be scored exactly.
    """

    def __init__(self, model: PreTrainedModel, args: CrossTokenizerGKDConfig, name: str = ""):
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.reach = reach_of(model.config)
        self._args = args
        check_head(causal_lm(model), "teacher")

    @property
    def lm_head(self) -> LMHead:
        """What makes logits of its hidden states."""
        return read_lm_head(causal_lm(self.model))

    def forget(self) -> None:
        """It expects nothing."""

    def expect(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        """It computes a micro-batch at a time, for want of memory."""

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Where `offload_teacher` keeps the teacher in main memory, have it on the device for a while."""
        if not self._args.offload_teacher:
            yield
            return
        try:
            self.model.to(self._args.device)
            yield
        finally:
            self.model.to("cpu")

    @torch.no_grad()
    def token_logps(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " teacher_tokens"]:
        """See [`Teacher.token_logps`]."""
        return self.token_logps_and_states(prompts, completions)[0]

    @torch.no_grad()
    def token_logps_and_states(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, " teacher_tokens"], Float[Tensor, "teacher_tokens hidden"]]:
        """The same, and the final hidden state that predicts each token; NaN where unknown, too."""
        model = causal_lm(self.model)
        pairs = zip(prompts, completions, strict=True)
        kept = [completion[: self.reach.of(prompt, completion)] for prompt, completion in pairs]
        packed = pack(prompts, kept, model.get_input_embeddings().weight.device)
        states = completion_states(model, packed)
        logps = token_logps(states, read_lm_head(model), packed["targets"].to(states.device), **self._args.scoring)
        missing = [len(completion) - len(scored) for completion, scored in zip(completions, kept, strict=True)]
        sizes = [len(scored) for scored in kept]
        return _fill(logps, sizes, missing), _fill(states, sizes, missing)


def _fill(values: Tensor, sizes: Sequence[int], missing: Sequence[int]) -> Tensor:
    """Put as many NaN behind each row as values are missing there."""
    if not any(missing):
        return values
    rows = zip(values.split(sizes), missing, strict=True)
    return torch.cat([part for row, gap in rows for part in (row, row.new_full((gap, *row.shape[1:]), torch.nan))])


def load_teacher(teacher: str | PreTrainedModel, args: CrossTokenizerGKDConfig) -> PreTrainedModel:
    """The teacher on its device, quantized if `args` say so.

    Its precision follows the run (`bf16`, `fp16`, else float32) unless `teacher_model_init_kwargs` name a `dtype`. A
    `device_map` there says where it stays. One that is loaded already is moved only if all of it is in main memory.

    Raises:
        ConfigError: If a quantized or dispatched teacher is to be offloaded.
        ModelError: If it cannot be loaded as asked, for example because bitsandbytes is missing.
    """
    has_place = (args.teacher_model_init_kwargs or {}).get("device_map") is not None
    if isinstance(teacher, str):
        teacher = _from_pretrained(teacher, args)
    if args.offload_teacher:
        _check_movable(teacher, args)
        return teacher.to("cpu")
    in_memory = {parameter.device.type for parameter in teacher.parameters()} == {"cpu"}
    return teacher.to(args.device) if in_memory and not has_place else teacher


def _check_movable(teacher: PreTrainedModel, args: CrossTokenizerGKDConfig) -> None:
    devices = sorted({str(parameter.device) for parameter in teacher.parameters()})
    dtypes = sorted({str(parameter.dtype) for parameter in teacher.parameters() if not parameter.is_floating_point()})
    if dtypes or len(devices) > 1 or "meta" in devices:
        found = f"on {', '.join(devices)}" + (f", some of them in {', '.join(dtypes)}" if dtypes else "")
        raise ConfigError(
            f"`offload_teacher=True` moves the teacher between main memory and {args.device}, but the weights of this "
            f"{type(teacher).__name__} are {found}. Load it without quantization and on one device, or leave "
            "`offload_teacher` out."
        )


def _from_pretrained(name: str, args: CrossTokenizerGKDConfig) -> PreTrainedModel:
    kwargs: dict[str, Any] = {**teacher_init_kwargs(args)}
    compute_dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    kwargs.setdefault("dtype", compute_dtype)
    quantization = _quantization_config(args, compute_dtype)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
        kwargs.setdefault("device_map", {"": args.device})
    kwargs.setdefault("trust_remote_code", args.trust_remote_code)
    try:
        return AutoModelForCausalLM.from_pretrained(name, **kwargs)
    except (ImportError, OSError, TypeError, ValueError) as error:
        given = teacher_init_kwargs(args)
        raise ModelError(
            f"The teacher {name!r} cannot be loaded{f' with {given}' if given else ''}: {error}"
        ) from error


def _quantization_config(args: CrossTokenizerGKDConfig, compute_dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if args.load_teacher_in_4bit:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
    if args.teacher_quantization_config is None:
        return None
    return BitsAndBytesConfig(**args.teacher_quantization_config)
