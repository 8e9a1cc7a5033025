"""Tokenizers and configurations by name or folder, as the commands take them."""

from typing import Any

from ..errors import ConfigError, ModelError, TokenizerError
from ..sources import not_loaded


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """A tokenizer, from a folder or from the Hub or its cache.

    Raises:
        ConfigError: If several are named.
        TokenizerError: If there is no tokenizer, or it is not a fast one.
    """
    _refuse_several(name)
    from transformers import AutoTokenizer

    from ..alignment.token_bytes import token_bytes

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise TokenizerError(not_loaded("tokenizer", name, error)) from error
    token_bytes(tokenizer)
    return tokenizer


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model, from a folder or from the Hub or its cache; no weights.

    Raises:
        ConfigError: If several are named.
        ModelError: If there is no configuration.
    """
    _refuse_several(name)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (ImportError, OSError, ValueError) as error:
        raise ModelError(not_loaded("configuration", name, error)) from error


def _refuse_several(name: str) -> None:
    if name.startswith("{"):
        raise ConfigError(
            f"{name!r} names several models, as `trl-xtok gkd` takes teachers, but this command takes one. Run it for "
            "each of them."
        )
