"""Tokenizers and configurations of both models, read before any weights.

What cannot be loaded or read exactly is refused here, while it costs seconds.
"""

from collections.abc import Callable, Mapping
from typing import Any

from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..alignment.templates import load_chat_template
from ..alignment.token_bytes import token_bytes
from ..errors import ConfigError, ModelError, TokenizerError
from .config import CrossTokenizerGKDConfig


Model = str | PreTrainedModel


def check_model(model: Any, argument: str) -> Model:
    """The model as it was given.

    Raises:
        ConfigError: If it is neither a name nor a model of transformers.
    """
    if not isinstance(model, str | PreTrainedModel | PeftModel):
        raise ConfigError(
            f"`{argument}` is a {type(model).__name__}, but must be the name or path of a model as text, or a loaded "
            "model of transformers or PEFT."
        )
    return model


def name_of(model: Model) -> str:
    """The name or path that a model has or was loaded from; empty if it was not."""
    return model if isinstance(model, str) else model.config._name_or_path


def load_student_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: Model, args: CrossTokenizerGKDConfig
) -> PreTrainedTokenizerBase:
    """The student's tokenizer, with a pad token and the chat template that `args` ask for.

    Raises:
        ConfigError: If its pad token or chat template cannot be what `args` say.
        TokenizerError: If it cannot be loaded or read exactly.
    """
    tokenizer = _load_tokenizer(tokenizer, model, "processing_class", args.model_init_kwargs, args)
    path = args.chat_template_path
    if path is not None:
        if not path.endswith((".jinja", ".j2")):
            raise ConfigError(
                f"`chat_template_path={path!r}` is not the path of a Jinja file (`.jinja` or `.j2`). To take over the "
                "template of another model with its special tokens, prepare the student with "
                "`trl.clone_chat_template` and pass both model and tokenizer."
            )
        # The parent sets it as well, but not before the first prompt is checked.
        tokenizer.chat_template = load_chat_template(path)
    set_pad_token(tokenizer, args)
    return tokenizer


def load_teacher_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, teacher: Model, args: CrossTokenizerGKDConfig
) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer.

    Raises:
        ConfigError: If it is not known where to find it.
        TokenizerError: If it cannot be loaded or read exactly.
    """
    return _load_tokenizer(tokenizer, teacher, "teacher_processing_class", args.teacher_model_init_kwargs, args)


def _load_tokenizer(
    tokenizer: Any,
    model: Model,
    argument: str,
    init_kwargs: Mapping[str, Any] | None,
    args: CrossTokenizerGKDConfig,
) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        name = name_of(model)
        if not name:
            raise ConfigError(
                f"`{argument}` is None and the loaded {type(model).__name__} does not say where it came from, so its "
                f"tokenizer cannot be found. Pass `{argument}`."
            )
        tokenizer = _read(AutoTokenizer.from_pretrained, name, "tokenizer", TokenizerError, init_kwargs, args)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ConfigError(
            f"`{argument}` is a {type(tokenizer).__name__}, but must be a tokenizer. Load it with "
            "`AutoTokenizer.from_pretrained`; of a processor, pass its `tokenizer`."
        )
    # Kept, so the aligner does not pay for it again.
    token_bytes(tokenizer)
    return tokenizer


def read_config(
    model: Model, init_kwargs: Mapping[str, Any] | None, args: CrossTokenizerGKDConfig
) -> PreTrainedConfig:
    """A model's configuration, without its weights.

    Raises:
        ModelError: If there is no such model.
    """
    if not isinstance(model, str):
        return model.config
    return _read(AutoConfig.from_pretrained, model, "configuration", ModelError, init_kwargs, args)


def _read(
    load: Callable[..., Any],
    name: str,
    what: str,
    failure: type[ModelError | TokenizerError],
    init_kwargs: Mapping[str, Any] | None,
    args: CrossTokenizerGKDConfig,
) -> Any:
    names = ("revision", "gguf_file", "token", "cache_dir", "local_files_only", "subfolder")
    where = {name: value for name, value in (init_kwargs or {}).items() if name in names}
    try:
        return load(name, trust_remote_code=args.trust_remote_code, **where)
    except (ImportError, OSError, ValueError) as error:
        raise failure(
            f"The {what} of {name!r} cannot be loaded: {error} Check the name or path (and your login and connection, "
            "if it is a model of the Hub)."
        ) from error


def context_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a model can read, or `None` if its configuration does not say."""
    config = config.get_text_config()
    # GPT-2 and others have another name for it.
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return config.to_dict().get(name)


def set_pad_token(tokenizer: PreTrainedTokenizerBase, args: CrossTokenizerGKDConfig) -> None:
    """Give the student's tokenizer a pad token as TRL does: the one asked for, its own, else its EOS token.

    Raises:
        ConfigError: If there is none, or it is not in the vocabulary.
    """
    pad_token = args.pad_token or tokenizer.pad_token or tokenizer.eos_token
    if pad_token is None:
        raise ConfigError(
            "The student's tokenizer has neither a pad nor an EOS token, so a batch of rollouts cannot be padded. "
            "Set `tokenizer.pad_token` and pass the tokenizer as `processing_class`."
        )
    # `convert_tokens_to_ids` would give the unknown token for what is not there.
    if tokenizer.backend_tokenizer.token_to_id(pad_token) is None:
        raise ConfigError(
            f"The pad token {pad_token!r} is not in the vocabulary of the student's tokenizer. Choose one of its "
            "tokens, for example its EOS token."
        )
    tokenizer.pad_token = pad_token


def let_gradients_through(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from packing the weights of a 4-bit student for a CPU kernel that has no gradient.

    It does so at the first forward in evaluation mode, on CPUs with the instructions for it, and never undoes it.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
