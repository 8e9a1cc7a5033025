"""Tokenizers and configurations of both models, read before any weights.

What cannot be loaded or read exactly is refused here, while it costs seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from peft import PeftConfig, PeftModel
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from ..alignment.templates import load_chat_template
from ..alignment.token_bytes import token_bytes
from ..errors import ConfigError, ModelError, TokenizerError
from ..sources import not_loaded
from .config import CrossTokenizerGKDConfig


Model = str | PreTrainedModel


def check_model(model: Any, argument: str) -> Model:
    """The model as it was given.

    Raises:
        ConfigError: If it is neither a name nor a model of transformers.
    """
    if model == "" or not isinstance(model, str | PreTrainedModel | PeftModel):
        found = "empty" if model == "" else f"a {type(model).__name__}"
        raise ConfigError(
            f"`{argument}` is {found}, but must be the name or path of a model as text, or a loaded model of "
            "transformers or PEFT."
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
        ConfigError: If its pad token or chat template cannot be what `args` say, or `model` names an adapter.
        TokenizerError: If it cannot be loaded or read exactly.
    """
    if isinstance(model, str) and (base := _base_of_adapter(model, _source(args.model_init_kwargs, args))):
        raise ConfigError(
            f"`model={model!r}` is an adapter for {base!r}, and a student is loaded without its adapter. To go on "
            f"training it, pass `AutoPeftModelForCausalLM.from_pretrained({model!r}, is_trainable=True)`; to start a "
            f"new one, pass {base!r} and a `peft_config`."
        )
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
    tokenizer: PreTrainedTokenizerBase | None, teacher: Model | None, args: CrossTokenizerGKDConfig
) -> PreTrainedTokenizerBase:
    """The teacher's tokenizer; of an adapter that was saved without one, its base model's.

    Raises:
        ConfigError: If it is not known where to find it.
        TokenizerError: If it cannot be loaded or read exactly.
    """
    if tokenizer is None and teacher is None:
        raise ConfigError(
            f"The teacher is behind {args.teacher_server_url}, but its tokenizer is needed here. Name the model in "
            "`teacher_model_name_or_path`, of which nothing but tokenizer and configuration is read, or pass "
            "`teacher_processing_class`."
        )
    source = teacher_init_kwargs(args)
    if tokenizer is None and isinstance(teacher, str) and (base := _base_of_adapter(teacher, _source(source, args))):
        teacher = teacher if get_tokenizer_config(teacher, **_source(source, args)) else base
    return _load_tokenizer(tokenizer, teacher, "teacher_processing_class", source, args)


def teacher_init_kwargs(args: CrossTokenizerGKDConfig) -> dict[str, Any]:
    """Arguments with which everything of a teacher given by name is loaded."""
    given = args.teacher_model_init_kwargs or {}
    return given if args.teacher_model_revision is None else {"revision": args.teacher_model_revision, **given}


def _load_tokenizer(
    tokenizer: Any,
    model: Model | None,
    argument: str,
    init_kwargs: Mapping[str, Any] | None,
    args: CrossTokenizerGKDConfig,
) -> PreTrainedTokenizerBase:
    if tokenizer is None and model is not None:
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


def read_teacher_config(teacher: Model, args: CrossTokenizerGKDConfig) -> PreTrainedConfig:
    """The teacher's configuration, without its weights; of an adapter, its base model's.

    Raises:
        ModelError: If there is no such model.
    """
    source = teacher_init_kwargs(args)
    if isinstance(teacher, str):
        teacher = _base_of_adapter(teacher, _source(source, args)) or teacher
    return read_config(teacher, source, args)


def _base_of_adapter(name: str, source: Mapping[str, Any]) -> str | None:
    """The model that an adapter is for, if there is an adapter under this name and no whole model beside it."""
    names = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
    where = {name: value for name, value in source.items() if name in names}
    try:
        path = find_adapter_config_file(name, **where)
    except OSError:
        # A path that is not there; who reads the model says so.
        return None
    if path is None or Path(name, where.get("subfolder") or "", CONFIG_NAME).exists():
        return None
    return PeftConfig.from_pretrained(name, **where).base_model_name_or_path


def _source(init_kwargs: Mapping[str, Any] | None, args: CrossTokenizerGKDConfig) -> dict[str, Any]:
    """What of `init_kwargs` says where a model is, and whether the code that it brings along may run."""
    names = ("revision", "gguf_file", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
    given = {name: value for name, value in (init_kwargs or {}).items() if name in names}
    return {"trust_remote_code": args.trust_remote_code, **given}


def _read(
    load: Callable[..., Any],
    name: str,
    what: Literal["tokenizer", "configuration"],
    failure: type[ModelError | TokenizerError],
    init_kwargs: Mapping[str, Any] | None,
    args: CrossTokenizerGKDConfig,
) -> Any:
    source = _source(init_kwargs, args)
    try:
        return load(name, **source)
    except (ImportError, OSError, ValueError) as error:
        places = {key: source.get(key) for key in ("gguf_file", "subfolder")}
        raise failure(not_loaded(what, name, error, **places)) from error


def context_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a model can read, or `None` if its configuration does not say."""
    config = config.get_text_config()
    # GPT-2 and others have another name for it.
    name = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return config.to_dict().get(name)


class Reach(NamedTuple):
    """How far a model can read.

    Attributes:
        vocab_size: Rows of its embedding.
        context: Longest sequence, or `None`.
    """

    vocab_size: int
    context: int | None

    def of(self, prompt: Sequence[int], completion: Sequence[int]) -> int:
        """How many tokens of the completion, from its beginning, are within context and embedding."""
        end = next((place for place, token in enumerate(completion) if token >= self.vocab_size), len(completion))
        return end if self.context is None else max(min(end, self.context - len(prompt)), 0)


def reach_of(config: PreTrainedConfig) -> Reach:
    """How far the model with this configuration can read."""
    return Reach(config.get_text_config().vocab_size, context_length(config))


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


def prepare_student(model: PreTrainedModel) -> None:
    """Undo what would make a student that bitsandbytes quantized train otherwise than it says.

    TRL rounds what is trained to bfloat16, where small updates vanish and for which float16 has no gradient scaling;
    PEFT makes float32 of it where a run is resumed, which then goes on differently.

    At the first forward in evaluation mode bitsandbytes packs 4-bit weights for a CPU kernel that has no gradient, on
    CPUs with the instructions for it, and never undoes it.
    """
    quantized = [module for module in model.modules() if type(module).__name__ in ("Linear4bit", "Linear8bitLt")]
    for module in quantized:
        module.support_avx512bf16_for_cpu = False
    for parameter in model.parameters():
        if quantized and parameter.requires_grad:
            parameter.data = parameter.data.float()
