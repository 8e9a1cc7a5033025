"""The training arguments: those of `GKDConfig`, and what cross-tokenizer distillation adds."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from .best_metric import choose_metric, refuse_loss
from .config_checks import (
    BY_NAME,
    DICTIONARIES,
    ObjectiveName,
    check_teacher,
    refuse_invalid,
    refuse_unread,
    refuse_unsupported,
    take_alias,
)
from .config_numbers import check_numbers, read_charge
from .config_values import as_json, has_bf16
from .engine_arguments import EngineArguments, check_engine_arguments
from .server_arguments import TeacherServerArguments, check_served, take_addresses
from .trl_compat import GKDConfig


@dataclass
class CrossTokenizerGKDConfig(EngineArguments, TeacherServerArguments, GKDConfig):  # pyright: ignore[reportIncompatibleVariableOverride]
    """
    Configuration class for [`CrossTokenizerGKDTrainer`].

    This class includes only the parameters that cross-tokenizer distillation adds to [`experimental.gkd.GKDConfig`],
    and the defaults that it changes: `temperature=1.0`, `lmbda=1.0`, `bf16` (bfloat16 on Ampere or newer, else float16
    on CUDA, else float32) and `use_cpu` (`True` without an accelerator). `disable_dropout=False` keeps dropout in the
    forward that scores the rollouts, which are sampled without it. [`TeacherServerArguments`] has those for a teacher
    behind a server.

    Args:
        objective (`str`, *optional*, defaults to `"auto"`):
            What is minimised. `"chunk_rkl"` is the chunk-aligned reverse KL of the [paper](https://huggingface.co/papers/2606.09456).
            `"chunk_jsd"` is the generalised Jensen-Shannon divergence between the probabilities of each chunk, with
            `beta` as in GKD (0 forward KL, 1 reverse KL). The others compare next-token distributions, with `beta`:
            `"exact_jsd"` the whole ones, for two tokenizers with one vocabulary; `"shared_vocab_jsd"` those over
            tokens with equal bytes, on chunks of one token on both sides, and drops all other chunks; `"hybrid"` adds
            `chunk_rkl` on those; `"prefix_jsd"` compares classes of tokens that begin the same text where a chunk
            begins, and adds `chunk_rkl` on what the rest of the chunk says. `"auto"` chooses `"exact_jsd"` for one
            vocabulary and `"chunk_rkl"` for two.
        scoring_temperature (`float`, *optional*):
            Temperature for the log-probs of both models, where it is not `temperature`, at which completions are
            sampled. Objectives that credit samples take no other.
        max_completion_length (`int`, *optional*):
            Another name of `max_new_tokens`.
        chunk_temperature (`float`, *optional*, defaults to `1.0`):
            Divides the log-probs of whole chunks in `chunk_jsd`; above 1 it softens long chunks.
        chunk_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the `chunk_rkl` part of `hybrid` and `prefix_jsd`.
        crossentropy_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy on completions that the student did not write, which are those of steps that
            `lmbda` leaves to the dataset or, with `seq_kd`, to the teacher. `chunk_rkl` has no other use for them; the
            `chunk_rkl` part of `hybrid` and `prefix_jsd` is left out there, since it holds for rollouts only.
        credit (`str`, *optional*, defaults to `"proportional"`):
            How a chunk's signal is split over its student tokens: `"proportional"` (the paper), `"additive"`,
            `"uniform"` or `"chunk"` (the whole signal to every token).
        segmentation (`str`, *optional*, defaults to `"path"`):
            `"path"` scores the tokens that the student sampled. `"text"` also scores the student's own canonical
            tokenization of the same text and takes away the reward for spreading one text over many tokenizations.
        advantage_clip (`float` or `None`, *optional*, defaults to `10.0`):
            Largest absolute advantage of a token, in nats, before the mean is subtracted. `None` does not clip.
        advantage_baseline (`str`, *optional*, defaults to `"none"`):
            `"mean"` subtracts the mean advantage of the optimizer step, which lowers the variance of the gradient.
            Several micro-batches or processes then cost a second forward pass of the student. `"position"` subtracts
            from the first token of each chunk, before the clip, minus the reverse KL of the two next-token
            distributions over the tokens that both models have ([paper](https://huggingface.co/papers/2605.07865)).
        canonical_guard (`float`, *optional*):
            Minus this is the advantage of tokens with which the student leaves its own tokenization of the text,
            whatever the teacher says.
        dropped_advantage (`float` or `"mean"`, *optional*, defaults to `"mean"`):
            Advantage of sampled tokens that the student itself made unscorable (invalid UTF-8, unknown ids). `"mean"`
            is the mean advantage of the credited tokens of the optimizer step, at most zero. `0.0` does not charge
            them.
        drop_whitespace (`bool`, *optional*, defaults to `False`):
            Whether to drop chunks of nothing but white space.
        max_chunk_tokens (`int`, *optional*):
            Chunks with more tokens than this on at least one side are dropped. `None` keeps all.
        one_to_one_only (`bool`, *optional*, defaults to `False`):
            Whether to drop all chunks but those of one token on both sides. An ablation: it lowers coverage, and the
            student learns to write what is dropped.
        max_lookahead (`float`, *optional*):
            The chunks on both sides of a cut are joined where the student would have gone on with more than this
            probability so that the teacher does not cut there. 1.0 joins none. `None` is 0.1 with `prefix_jsd` or
            `advantage_baseline="position"`, unless chunks are chosen as they are cut (see the losses), else 1.0.
        min_coverage (`float`, *optional*, defaults to `0.5`):
            Training stops with an error when the share of tokens trained on (all with a cross-entropy) is below this.
        loss_backend (`str`, *optional*, defaults to `"auto"`):
            Who computes log-probs without logits: `"liger"`, `"torch"`, or `"auto"` (Liger on CUDA, if it can).
        block_size (`int`, *optional*):
            Tokens whose logits exist at the same time. `None` keeps them under 32 MiB, and comparisons under 50 MiB.
        teacher_model_revision (`str`, *optional*):
            Branch, tag or commit of a teacher given by name, and of its tokenizer.
        load_teacher_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to load the teacher in 4-bit NF4 with bitsandbytes. Only for a teacher given by name.
        teacher_quantization_config (`dict` or `str`, *optional*):
            Arguments of `BitsAndBytesConfig` for a teacher given by name, as a dictionary or JSON.
        offload_teacher (`bool`, *optional*, defaults to `False`):
            Whether the teacher waits in main memory while it has nothing to score or write, so that the student has
            the device to itself. It is moved twice per optimizer step. Not for a quantized teacher.
        chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments for the student's chat template, as a dictionary or JSON.
        teacher_chat_template_kwargs (`dict` or `str`, *optional*):
            Arguments for the teacher's chat template, for example `{"enable_thinking": false}`.
        teacher_chat_template_path (`str`, *optional*):
            Jinja file with the teacher's chat template, for a teacher whose tokenizer has none.
        assistant_turns (`str`, *optional*, defaults to `"last"`):
            Which assistant turns of a conversation are trained on: the `"last"`, or `"all"`, each of which becomes an
            example of its own, with what stands before it as the prompt.
        eval_on_dataset (`bool`, *optional*, defaults to `False`):
            Whether evaluations score the completions of the dataset, as those of GKD do, instead of letting the
            student write. The loss is that of steps that `lmbda` leaves to the dataset, or, with `chunk_rkl`, the
            cross-entropy.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print the (prompt, completion) pairs of the last step every `logging_steps` steps, and those of
            every evaluation, with the reverse KL per byte and the coverage of each; to write them to Parquet files in
            `output_dir/completions`; and to log them to `wandb` and `trackio` where these are in `report_to`.
        num_completions_to_print (`int`, *optional*):
            Number of completions to print, drawn at random. `None` prints all.
        log_unique_prompts (`bool`, *optional*, defaults to `False`):
            Whether to log only one completion of each prompt to `wandb` and `trackio`.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GKDConfig._VALID_DICT_FIELDS, *DICTIONARIES, *BY_NAME]

    # Parameters whose default values are overridden from GKDConfig
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature for sampling, and for the log-probs of both models."}
    )
    scoring_temperature: float | None = field(
        default=None, metadata={"help": "Temperature for the log-probs of both models, if it is another one."}
    )
    max_completion_length: int | None = field(
        default=None, metadata={"help": "Another name of `max_new_tokens`, as other trainers call it."}
    )
    lmbda: float = field(
        default=1.0,
        metadata={
            "help": "Share of optimizer steps that train on completions that the student has just written. The others "
            "train on those of the dataset or, with `seq_kd`, of the teacher."
        },
    )

    # Parameters that control the objective
    objective: ObjectiveName = field(
        default="auto",
        metadata={"help": "What is minimised; `auto` is `exact_jsd` for two equal vocabularies, else `chunk_rkl`."},
    )
    chunk_temperature: float = field(
        default=1.0, metadata={"help": "Divides the log-probs of whole chunks in `chunk_jsd`."}
    )
    chunk_weight: float = field(
        default=1.0, metadata={"help": "Weight of the `chunk_rkl` part of `hybrid` and `prefix_jsd`."}
    )
    crossentropy_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the cross-entropy on completions that the student did not write."},
    )
    credit: Literal["proportional", "additive", "uniform", "chunk"] = field(
        default="proportional", metadata={"help": "How a chunk's signal is split over its student tokens."}
    )
    segmentation: Literal["path", "text"] = field(
        default="path",
        metadata={"help": "Whether to reward the sampled tokens (`path`) or the text that they spell (`text`)."},
    )
    advantage_clip: float | None = field(
        default=10.0, metadata={"help": "Largest absolute advantage of a token, in nats. None switches clipping off."}
    )
    advantage_baseline: Literal["none", "mean", "position"] = field(
        default="none",
        metadata={"help": "Subtracted from advantages: nothing, the step's mean, or what each position expects."},
    )
    canonical_guard: float | None = field(
        default=None,
        metadata={"help": "Minus this is the advantage of tokens that leave the student's own tokenization."},
    )
    # Annotated as `str` since the command-line parser takes one type per argument; a number is accepted too.
    dropped_advantage: str = field(
        default="mean",
        metadata={
            "help": "Advantage of sampled tokens that the student itself made unscorable: a number, or `mean` for the "
            "mean of the credited tokens, at most zero."
        },
    )
    max_chunk_tokens: int | None = field(
        default=None, metadata={"help": "Chunks with more tokens than this on at least one side are dropped."}
    )
    drop_whitespace: bool = field(
        default=False, metadata={"help": "Whether to drop chunks of nothing but white space."}
    )
    one_to_one_only: bool = field(
        default=False, metadata={"help": "Whether to drop all chunks but those of one token on both sides."}
    )
    max_lookahead: float | None = field(
        default=None, metadata={"help": "Chunks are joined where a cut is undone with more than this probability."}
    )
    min_coverage: float = field(
        default=0.5,
        metadata={"help": "Training stops when the share of trained sampled tokens stays below this value."},
    )

    # Parameters that control the computation
    loss_backend: Literal["auto", "liger", "torch"] = field(
        default="auto", metadata={"help": "Who computes log-probs without logits."}
    )
    block_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of tokens whose logits exist at the same time. None keeps them under 32 MiB, "
            "and comparisons under 50 MiB."
        },
    )
    eval_on_dataset: bool = field(
        default=False,
        metadata={"help": "Whether evaluations score the dataset's completions instead of letting the student write."},
    )

    # Parameters that control the teacher and the prompts
    assistant_turns: Literal["last", "all"] = field(
        default="last",
        metadata={"help": "Whether to train on the last assistant turn of a conversation or on all of them."},
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the teacher and its tokenizer."}
    )
    load_teacher_in_4bit: bool = field(
        default=False, metadata={"help": "Whether to load the teacher in 4-bit NF4 with bitsandbytes."}
    )
    teacher_quantization_config: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of `BitsAndBytesConfig` for the teacher."}
    )
    offload_teacher: bool = field(
        default=False,
        metadata={"help": "Whether the teacher waits in main memory while it has nothing to score or write."},
    )
    chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments for the student's chat template."}
    )
    teacher_chat_template_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments for the teacher's chat template."}
    )
    teacher_chat_template_path: str | None = field(
        default=None, metadata={"help": "Jinja file with the teacher's chat template, if its tokenizer has none."}
    )

    # Parameters that control the logging
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Whether to print (prompt, completion) pairs every `logging_steps` steps and at every evaluation, "
            "and to write them to Parquet files, `wandb` and `trackio`."
        },
    )
    num_completions_to_print: int | None = field(
        default=None, metadata={"help": "Number of completions to print, drawn at random. None prints all."}
    )
    log_unique_prompts: bool = field(
        default=False,
        metadata={"help": "Whether to log only one completion of each prompt to `wandb` and `trackio`."},
    )

    def __post_init__(self):
        take_alias(self)
        take_addresses(self)
        check_numbers(self)
        choose_metric(self)
        if not torch.accelerator.is_available():
            self.use_cpu = True
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_bf16(self.use_cpu)
            self.fp16 = self.fp16 or (not self.bf16 and not self.use_cpu and torch.cuda.is_available())
        super().__post_init__()
        refuse_unsupported(self)
        refuse_unread(self, self.objective)
        refuse_invalid(self, self.objective)
        refuse_loss(self, self.objective)
        check_teacher(self)
        check_engine_arguments(self)
        check_served(self)
        if self.dropped_advantage != "mean":
            self.dropped_advantage = read_charge(self.dropped_advantage, self.advantage_baseline)

    @property
    def scoring(self) -> dict[str, Any]:
        """How the log-probs of both models are computed."""
        temperature = self.temperature if self.scoring_temperature is None else self.scoring_temperature
        return {"temperature": temperature, "block_size": self.block_size, "backend": self.loss_backend}

    def to_dict(self) -> dict[str, Any]:
        """Like the parent, which makes JSON of the student's quantization only."""
        written = super().to_dict()
        for name in ("teacher_model_init_kwargs", "teacher_quantization_config"):
            if written[name] is not None:
                written[name] = {key: as_json(value) for key, value in written[name].items()}
        return written
