"""The tokenizers of the shared models, read once for all tests that do not ask how a tokenizer is found."""

from typing import Any

from tests import real_tokenizers


def shared_tokenizers() -> dict[str, Any]:
    """Arguments of the trainer for `student_path` and `teacher_path`."""
    return {
        "processing_class": real_tokenizers.smollm2(),
        "teacher_processing_class": real_tokenizers.mistral1(),
    }
