"""What `import trl_xtok` offers, and that the aligner needs neither torch nor trl."""

import subprocess
import sys
from pathlib import Path

import pytest

import trl_xtok


REPOSITORY = Path(__file__).parents[1]

ALIGN = """
import sys
import trl_xtok
from tests.real_tokenizers import {student}, {teacher}

student, teacher = {student}(), {teacher}()
alignment = trl_xtok.TokenizerAligner(student, teacher).align(student.encode("hello there", add_special_tokens=False))
assert alignment.coverage == 1.0
{extra}
print(sorted({{"torch", "trl"}} & set(sys.modules)))
"""


def heavy_modules_after(program: str) -> str:
    """What a fresh interpreter has loaded of torch and trl when the program ends."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:trl_xtok", "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_what_can_be_imported():
    assert trl_xtok.__all__ == sorted(trl_xtok.__all__)
    assert set(dir(trl_xtok)) == set(trl_xtok.__all__)
    for name in trl_xtok.__all__:
        assert getattr(trl_xtok, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trl_xtok' has no attribute 'Nonsense'"):
        trl_xtok.Nonsense  # noqa: B018


@pytest.mark.parametrize(("student", "teacher"), [("qwen3", "mistral1"), ("gemma3", "wordpiece")])
def test_the_aligner_imports_neither_torch_nor_trl(student, teacher):
    # The tokenizers were converted and kept before, since conversion may need torch.
    from tests.alignment.pairs import tokenizer

    assert tokenizer(student) is not tokenizer(teacher)
    assert heavy_modules_after(ALIGN.format(student=student, teacher=teacher, extra="")) == "[]"


def test_an_import_of_torch_would_be_seen():
    """Shows that the test above can fail."""
    program = ALIGN.format(student="qwen3", teacher="mistral1", extra="import torch")
    assert heavy_modules_after(program) == "['torch']"


def test_importing_the_package_imports_neither_torch_nor_trl():
    assert heavy_modules_after("import sys, trl_xtok; print(sorted({'torch', 'trl'} & set(sys.modules)))") == "[]"
