"""Models on disk that training tests share: a ByteLevel student, teachers of other families, one of the same."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.training.fixed_rollouts import PADDING_ROWS
from tests.training.tiny_models import save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDTrainer


@pytest.fixture(scope="session")
def student_path(tmp_path_factory) -> str:
    """A Llama with the ByteLevel tokenizer of SmolLM2 (49,152 entries)."""
    tokenizer = real_tokenizers.smollm2()
    return save(tiny_model("llama", len(tokenizer)), tokenizer, tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def teacher_path(tmp_path_factory) -> str:
    """A Gemma 3 with the SentencePiece tokenizer of Mistral 7B v0.1 (32,000 entries, byte fallback, `<s>` first)."""
    tokenizer = real_tokenizers.mistral1()
    # `AutoTokenizer` would rebuild the tokenizer of a folder that says Qwen2 as a ByteLevel one.
    model = tiny_model("gemma3", len(tokenizer), seed=1, hidden_size=32)
    return save(model, tokenizer, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def qwen_teacher_path(tmp_path_factory) -> str:
    """A Qwen2 with the tokenizer of Qwen3 (151,669 entries); another ByteLevel family."""
    tokenizer = real_tokenizers.qwen3()
    return save(tiny_model("qwen2", len(tokenizer), seed=2), tokenizer, tmp_path_factory.mktemp("qwen_teacher"))


@pytest.fixture(scope="session")
def same_tokenizer_teacher_path(tmp_path_factory) -> str:
    """Another Llama with the student's tokenizer."""
    tokenizer = real_tokenizers.smollm2()
    model = tiny_model("llama", len(tokenizer), seed=3, hidden_size=32)
    return save(model, tokenizer, tmp_path_factory.mktemp("same_tokenizer_teacher"))


@pytest.fixture(scope="session")
def padded_student_path(tmp_path_factory) -> str:
    """The same student with rows in its embedding that no token belongs to, as many models have them."""
    tokenizer = real_tokenizers.smollm2()
    model = tiny_model("llama", len(tokenizer) + PADDING_ROWS)
    return save(model, tokenizer, tmp_path_factory.mktemp("padded_student"))


@pytest.fixture(scope="session")
def byteless_teacher_path(tmp_path_factory) -> str:
    """A Gemma 3 whose small Unigram tokenizer (T5 kind) can neither spell single bytes nor all characters."""
    tokenizer = real_tokenizers.unigram()
    model = tiny_model("gemma3", len(tokenizer), seed=4)
    return save(model, tokenizer, tmp_path_factory.mktemp("byteless_teacher"))


@pytest.fixture
def load() -> Callable[[str], PreTrainedModel]:
    """A fresh copy of a model on disk, in evaluation mode."""

    def load_model(path: str) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(path).eval()

    return load_model


@pytest.fixture
def make_trainer(tmp_path, student_path, teacher_path) -> Callable[..., CrossTokenizerGKDTrainer]:
    """Build a trainer for the shared models; `student`, `teacher` and `arguments` are the trainer's, the rest args."""

    def make(*, student: Any = None, teacher: Any = None, arguments: dict[str, Any] | None = None, **changes: Any):
        return tiny_trainer(
            student or student_path, teacher or teacher_path, tiny_args(tmp_path, **changes), **arguments or {}
        )

    return make


@pytest.fixture(scope="module")
def teacher(teacher_path) -> PreTrainedModel:
    """The teacher, loaded."""
    return AutoModelForCausalLM.from_pretrained(teacher_path).eval()


@pytest.fixture
def server(teacher) -> Iterator[ModelServer]:
    """A server that has it."""
    with ModelServer(teacher, real_tokenizers.mistral1()) as server:
        yield server


@pytest.fixture
def served(make_trainer, server):
    """A trainer whose teacher is behind `server`."""
    return lambda **changes: make_trainer(teacher_server_url=changes.pop("url", server.url), **changes)
