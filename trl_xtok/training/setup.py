"""What is checked and loaded before the first step: tokenizers, prompts, arguments, the teacher.

Everything that can be refused is refused here, before a large model is loaded or a step is taken.
"""

from collections.abc import Mapping
from typing import Any

from peft import PeftConfig
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..alignment.aligner import TokenizerAligner
from ..alignment.templates import end_of_turn_id, load_chat_template, stop_ids
from ..errors import ConfigError, DataError, TemplateError
from .config import CrossTokenizerGKDConfig
from .data import PromptCollator, is_conversational_prompt, read_prompt


def default_args(model: str | PreTrainedModel) -> CrossTokenizerGKDConfig:
    """Arguments for `args=None`, with the output folder named as TRL does."""
    return CrossTokenizerGKDConfig(output_dir=f"{_name_of(model).split('/')[-1]}-GKD")


def _name_of(model: str | PreTrainedModel) -> str:
    return model if isinstance(model, str) else model.config._name_or_path


def refuse_arguments(peft_config: PeftConfig | None, **unused: Any) -> None:
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
    if peft_config is not None and peft_config.is_prompt_learning:
        raise ConfigError(
            f"`peft_config` is a {type(peft_config).__name__}, which puts virtual tokens before the prompt; the "
            "positions of sampled tokens would be off by them. Use LoRA."
        )


def refuse_sharding(*, deepspeed: bool, fsdp: bool) -> None:
    """Refuse launchers that shard parameters.

    Raises:
        ConfigError: Naming the launcher.
    """
    if deepspeed or fsdp:
        raise ConfigError(
            f"The run is launched with {'DeepSpeed' if deepspeed else 'FSDP'}, whose sharded parameters this trainer "
            "does not gather. Launch it with DDP (`accelerate launch --multi_gpu`) or on one device."
        )


def put_student_quantization(
    model: str | PreTrainedModel, args: CrossTokenizerGKDConfig, quantization_config: BitsAndBytesConfig | None
) -> None:
    """Put the student's quantization where `GKDTrainer` takes it from.

    Raises:
        ConfigError: If the student is loaded already, or the quantization is given twice.
    """
    if quantization_config is None:
        return
    if not isinstance(model, str):
        raise ConfigError(
            f"`quantization_config` says how to load the student, but `model` is a loaded {type(model).__name__}. "
            "Pass its name or path, or load it with this quantization."
        )
    if "quantization_config" in (args.model_init_kwargs or {}):
        raise ConfigError(
            "`quantization_config` is given to the trainer and in `args.model_init_kwargs`. Keep one of them."
        )
    args.model_init_kwargs = {**(args.model_init_kwargs or {}), "quantization_config": quantization_config}


def load_student_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: str | PreTrainedModel, args: CrossTokenizerGKDConfig
) -> PreTrainedTokenizerBase:
    """The student's tokenizer, with a pad token."""
    tokenizer = _load_tokenizer(tokenizer, model, "processing_class", args.model_init_kwargs, args)
    set_pad_token(tokenizer, args)
    return tokenizer


def load_teacher_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, teacher: str | PreTrainedModel, args: CrossTokenizerGKDConfig
) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer."""
    return _load_tokenizer(tokenizer, teacher, "teacher_processing_class", args.teacher_model_init_kwargs, args)


def _load_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None,
    model: str | PreTrainedModel,
    argument: str,
    init_kwargs: Mapping[str, Any] | None,
    args: CrossTokenizerGKDConfig,
) -> PreTrainedTokenizerBase:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        raise ConfigError(
            f"`{argument}` is a {type(tokenizer).__name__}, but only tokenizers are supported. Pass its tokenizer."
        )
    name = _name_of(model)
    if not name:
        raise ConfigError(
            f"`{argument}` is None and the loaded {type(model).__name__} does not say where it came from, so its "
            f"tokenizer cannot be found. Pass `{argument}`."
        )
    return AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code, **_where_to_load(init_kwargs))


def _where_to_load(init_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a tokenizer or configuration shares with the model's loading arguments."""
    names = ("revision", "gguf_file", "token", "cache_dir", "local_files_only", "subfolder")
    return {name: init_kwargs[name] for name in names if name in init_kwargs} if init_kwargs else {}


def student_config(model: str | PreTrainedModel, args: CrossTokenizerGKDConfig) -> PreTrainedConfig:
    """The student's configuration, read without its weights."""
    if not isinstance(model, str):
        return model.config
    return AutoConfig.from_pretrained(
        model, trust_remote_code=args.trust_remote_code, **_where_to_load(args.model_init_kwargs)
    )


def make_aligner(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    generation_config: GenerationConfig,
    teacher_chat_template: str | None,
) -> TokenizerAligner:
    """The aligner for rollouts that end as `generation_config` says; it is given stop ids if it has none."""
    stops = generation_config.eos_token_id
    if stops is None:
        stops = generation_config.eos_token_id = sorted(stop_ids(student_tokenizer))
    teacher_end_id = None
    if teacher_chat_template is not None:
        teacher_end_id = end_of_turn_id(teacher_tokenizer, chat_template=teacher_chat_template)
    return TokenizerAligner(
        student_tokenizer,
        teacher_tokenizer,
        student_stop_ids=[stops] if isinstance(stops, int) else stops,
        teacher_end_id=teacher_end_id,
    )


def set_pad_token(tokenizer: PreTrainedTokenizerBase, args: CrossTokenizerGKDConfig) -> None:
    """Give the student's tokenizer a pad token as TRL does: the one asked for, its own, else its EOS token.

    Raises:
        ConfigError: If there is none, or it is not in the vocabulary.
    """
    pad_token = args.pad_token or tokenizer.pad_token or tokenizer.eos_token
    if pad_token is None or tokenizer.convert_tokens_to_ids(pad_token) is None:
        raise ConfigError(
            f"The student's tokenizer has neither pad nor EOS token, and `pad_token={args.pad_token!r}` is not in its "
            "vocabulary. Set `tokenizer.pad_token` and pass it as `processing_class`."
        )
    tokenizer.pad_token = pad_token


def check_dataset(train_dataset: Any, collator: PromptCollator, *, custom: bool) -> None:
    """Tokenize the first prompt for both models, so that what is wrong with all of them shows at once.

    Args:
        train_dataset: Rows as the collator gets them.
        collator: Tokenizes for both models.
        custom: Whether the caller brings another collator, which may read any columns.

    Raises:
        DataError: If the dataset is empty or its prompts cannot be read.
        TemplateError: If a chat template is needed and missing.
    """
    if train_dataset is None:
        raise DataError("`train_dataset` is required: rollouts start from its prompts.")
    first = next(iter(train_dataset), None)
    if first is None:
        raise DataError("The training dataset is empty, so there is nothing to train on. Check its split and filters.")
    if custom:
        return
    prompt = read_prompt(first)
    if is_conversational_prompt(prompt):
        teacher_template = collator.teacher_chat_template or collator.teacher_tokenizer.chat_template
        _need_template("teacher", teacher_template, collator.teacher_tokenizer, "teacher_chat_template_path")
        _need_template(
            "student", collator.student_tokenizer.chat_template, collator.student_tokenizer, "chat_template_path"
        )
    collator.tokenize(prompt)


def _need_template(side: str, template: Any, tokenizer: PreTrainedTokenizerBase, argument: str) -> None:
    if template is None:
        raise TemplateError(
            f"The dataset is conversational, but the {side}'s tokenizer ({tokenizer.name_or_path!r}) has no chat "
            f"template, so the {side} cannot be shown the conversation. Set `{argument}` to a Jinja file, or use "
            "prompts in plain text."
        )


def make_collator(
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    args: CrossTokenizerGKDConfig,
) -> PromptCollator:
    """The collator that `args` ask for; the length limits are set once the models are known."""
    path = args.teacher_chat_template_path
    return PromptCollator(
        student_tokenizer,
        teacher_tokenizer,
        chat_template_kwargs=args.chat_template_kwargs,
        teacher_chat_template_kwargs=args.teacher_chat_template_kwargs,
        teacher_chat_template=None if path is None else load_chat_template(path),
    )


def limit_prompts(
    collator: PromptCollator, student_context: int | None, teacher_context: int | None, args: CrossTokenizerGKDConfig
) -> None:
    """Let no prompt pass that leaves too little room for a completion in `max_length` or in a model's context.

    Raises:
        ConfigError: If a completion alone fills one of the contexts.
    """
    lengths = [length for length in (args.max_length, student_context) if length is not None]
    collator.student_limit = _room("student", min(lengths, default=None), args.max_new_tokens)
    collator.teacher_limit = _room("teacher", teacher_context, args.max_new_tokens)


def _room(side: str, context: int | None, max_new_tokens: int) -> int | None:
    if context is None:
        return None
    if max_new_tokens >= context:
        raise ConfigError(
            f"The {side} reads at most {context} tokens, and `max_new_tokens={max_new_tokens}` leaves no room for a "
            "prompt. Lower `max_new_tokens`, or use a model with a longer context."
        )
    return context - max_new_tokens
