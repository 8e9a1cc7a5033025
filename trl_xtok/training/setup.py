"""What is checked before the first step: arguments, and room for prompts.

Everything that can be refused is refused here, before a large model is loaded or a step is taken.
"""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..alignment.aligner import TokenizerAligner
from ..alignment.templates import end_of_turn_id, load_chat_template, stop_ids
from ..errors import ConfigError
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator
from .engine_arguments import check_engine
from .launch import check_launch
from .loading import Model, check_model, context_length, name_of
from .rollouts import end_ids


# Gates between experts, a task's number, a penalty that is added to the loss.
_WITH_A_FORWARD = frozenset({PeftType.XLORA, PeftType.POLY, PeftType.ADALORA})


def check_args(args: Any, model: Model, compute_metrics: Any = None) -> CrossTokenizerGKDConfig:
    """The training arguments; defaults for `None`, with the output folder named as TRL does.

    Raises:
        ConfigError: If they are of another class, leave `compute_metrics` nothing to read, have a file as
            `output_dir`, or the run is launched in a way that shards parameters or sequences.
    """
    if args is None:
        args = CrossTokenizerGKDConfig(output_dir=f"{name_of(model).split('/')[-1]}-GKD")
    if not isinstance(args, CrossTokenizerGKDConfig):
        raise ConfigError(
            f"`args` is a {type(args).__name__}, which lacks the arguments of this trainer. Pass a "
            "`CrossTokenizerGKDConfig`; it takes the same values and more."
        )
    if Path(args.output_dir).is_file():
        raise ConfigError(f"`output_dir={args.output_dir!r}` is a file. Give the path of a folder, or of none yet.")
    check_launch(args)
    check_engine(args)
    if compute_metrics is not None:
        refuse_nothing_written(args, "`compute_metrics` gets")
    if args.accelerator_config.dispatch_batches is None:
        # Else one process would read a stream for all, and cannot put batches of different lengths together.
        args.accelerator_config.dispatch_batches = False
    return args


def refuse_arguments(model: Model, peft_config: Any, **unused: Any) -> None:
    """Refuse what this trainer cannot honour.

    Raises:
        ConfigError: Naming the argument.
    """
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                f"`{name}={value!r}` is not supported by CrossTokenizerGKDTrainer, which never builds logits or text "
                "rows that it could be called with. Leave it out."
            )
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"`peft_config` is a {type(peft_config).__name__}, but must be a `PeftConfig` such as `LoraConfig()`."
        )
    _refuse_adapter(model.active_peft_config if isinstance(model, PeftModel) else peft_config)


def _refuse_adapter(config: PeftConfig | None) -> None:
    if config is None:
        return
    if config.is_prompt_learning:
        raise ConfigError(
            f"The adapter is a {type(config).__name__}, which puts virtual tokens before the prompt; the positions of "
            "sampled tokens would be off by them. Use LoRA."
        )
    activated = isinstance(config, LoraConfig) and config.alora_invocation_tokens is not None
    if activated or config.peft_type in _WITH_A_FORWARD:
        found = "with `alora_invocation_tokens`" if activated else f"({config.peft_type.value})"
        raise ConfigError(
            f"The adapter is a {type(config).__name__} {found}, part of which PEFT does in a forward of its own. Here "
            "models are called beneath that, so this part would be left out. Use LoRA."
        )


def refuse_nothing_written(args: CrossTokenizerGKDConfig, reader: str) -> None:
    """Refuse `eval_on_dataset` beside what reads the student's completions.

    Raises:
        ConfigError: If it is set.
    """
    if args.eval_on_dataset:
        raise ConfigError(
            f"{reader} what the student writes, and with `eval_on_dataset=True` it writes nothing in evaluations. Set "
            "it to False."
        )


def check_student_loading(
    model: Model, args: CrossTokenizerGKDConfig, quantization_config: BitsAndBytesConfig | None
) -> None:
    """Refuse what says how to load a student and would not be used.

    Raises:
        ConfigError: If the student is loaded already, or its quantization is given twice.
    """
    given = {"quantization_config": quantization_config, "model_init_kwargs": args.model_init_kwargs}
    for name, value in given.items():
        if value and not isinstance(model, str):
            raise ConfigError(
                f"`{name}` says how to load the student, but `model` is a loaded {type(model).__name__}. Pass its "
                f"name or path, or load it so yourself and leave `{name}` out."
            )
    if quantization_config is not None and "quantization_config" in (args.model_init_kwargs or {}):
        raise ConfigError(
            "`quantization_config` is given to the trainer and in `args.model_init_kwargs`. Keep one of them."
        )


def check_teacher(teacher: Any, model: Model, args: CrossTokenizerGKDConfig, *, served: bool = False) -> Model | None:
    """The teacher as it was given or named; `None` for a served one without a name here.

    Raises:
        ConfigError: If there is none, a loaded one comes with arguments for loading, or shares the student's weights.
    """
    if served:
        if not isinstance(teacher, str | None):
            raise ConfigError(
                f"`teacher_model` is a loaded {type(teacher).__name__}, but with `teacher_server_url="
                f"{args.teacher_server_url}` the teacher is behind a server. Keep one of them; the tokenizer is found "
                "by name (`teacher_model_name_or_path`), or given as `teacher_processing_class`."
            )
        return teacher
    if teacher is None:
        raise ConfigError(
            "There is no teacher: `teacher_model` and `args.teacher_model_name_or_path` are both None. "
            "Set one of them."
        )
    if isinstance(check_model(teacher, "teacher_model"), str):
        return teacher
    names = ("teacher_model_init_kwargs", "teacher_model_revision", "load_teacher_in_4bit")
    for name in (*names, "teacher_quantization_config"):
        if getattr(args, name):
            raise ConfigError(
                f"`{name}={getattr(args, name)!r}` says how to load the teacher, but `teacher_model` is a loaded "
                f"{type(teacher).__name__}. Pass its name or path, or leave `{name}` out."
            )
    _refuse_adapter(teacher.active_peft_config if isinstance(teacher, PeftModel) else None)
    if not isinstance(model, str) and {*map(id, teacher.parameters())} & {*map(id, model.parameters())}:
        raise ConfigError(
            f"`model` ({type(model).__name__}) and `teacher_model` ({type(teacher).__name__}) share parameters, so "
            "the teacher would change with the student and there would be nothing to learn. Pass the teacher's name "
            "or path, or load it a second time."
        )
    return teacher


def make_collator(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student_config: PreTrainedConfig,
    teacher_config: PreTrainedConfig,
    args: CrossTokenizerGKDConfig,
) -> PromptCollator:
    """The collator that `args` ask for; it leaves room for a completion in `max_length` and in both contexts.

    Raises:
        ConfigError: If a completion alone fills one of the contexts, or one object is the tokenizer of both models and
            was given the student's chat template.
    """
    if student_tokenizer is teacher_tokenizer and args.chat_template_path and not args.teacher_chat_template_path:
        raise ConfigError(
            f"`chat_template_path={args.chat_template_path!r}` is for the student, but `teacher_processing_class` is "
            "the very object that is the student's tokenizer, so the teacher would read this template as well. Load "
            "its tokenizer a second time, or set `teacher_chat_template_path`."
        )
    lengths = [length for length in (args.max_length, context_length(student_config)) if length is not None]
    path = args.teacher_chat_template_path
    return PromptCollator(
        student_tokenizer,
        teacher_tokenizer,
        student_limit=_room("student", min(lengths, default=None), args.max_new_tokens),
        teacher_limit=_room("teacher", context_length(teacher_config), args.max_new_tokens),
        student_vocab_size=_checked_vocab_size(student_tokenizer, student_config),
        teacher_vocab_size=teacher_config.get_text_config().vocab_size,
        chat_template_kwargs=args.chat_template_kwargs,
        teacher_chat_template_kwargs=args.teacher_chat_template_kwargs,
        teacher_chat_template=None if path is None else load_chat_template(path),
        with_completions=args.lmbda < 1 and not args.seq_kd,
        student_context=min(lengths, default=None),
        text_field=args.dataset_text_field if args.lmbda == 0 and not args.seq_kd else None,
    )


def _checked_vocab_size(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    size = config.get_text_config().vocab_size
    if tokenizer.pad_token_id >= size:
        raise ConfigError(
            f"The student's pad token {tokenizer.pad_token!r} has the id {tokenizer.pad_token_id}, but its embedding "
            f"has {size} rows. Use a pad token that the model has, for example its EOS token, or call "
            "`model.resize_token_embeddings(len(tokenizer))` and pass the model."
        )
    return size


def _room(side: str, context: int | None, max_new_tokens: int) -> int | None:
    if context is None:
        return None
    if max_new_tokens >= context:
        raise ConfigError(
            f"The {side} reads at most {context} tokens, and `max_new_tokens={max_new_tokens}` leaves no room for a "
            "prompt. Lower `max_new_tokens`, or use a model with a longer context."
        )
    return context - max_new_tokens


def finish_generation_config(generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Change what the parent left as rollouts cannot use it.

    Where it lacks them it is given the stop tokens of tokenizer and chat template: generation of a base model ends at
    the end of a text only, and its chat template ends a turn with another token.
    """
    # The parent samples without a KV cache when gradient checkpointing is on; it is off while we sample.
    generation_config.use_cache = True
    stops = end_ids(generation_config)
    if missing := stop_ids(tokenizer) - stops:
        generation_config.eos_token_id = sorted(stops | missing)


def make_aligner(collator: PromptCollator, generation_config: GenerationConfig) -> TokenizerAligner:
    """The aligner for rollouts that end as `generation_config` says."""
    teacher, template = collator.teacher_tokenizer, collator.teacher_chat_template
    return TokenizerAligner(
        collator.student_tokenizer,
        teacher,
        student_stop_ids=end_ids(generation_config),
        teacher_end_id=None if template is None else end_of_turn_id(teacher, chat_template=template),
    )
