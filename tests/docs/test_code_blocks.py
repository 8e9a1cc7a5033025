"""Every code block of the documentation runs, or is read by what would run it."""

import json
import re
import shlex
import tomllib
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
from peft import LoraConfig
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from trl.import_utils import TRLExperimentalWarning

import trl_xtok
from tests import real_tokenizers
from tests.docs.stand_ins import leave_a_run, load_stand_in, short_config
from trl_xtok.cli import main


with warnings.catch_warnings():
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental import gkd, gold


ROOT = Path(__file__).parents[2]
# The cells of the notebook run in a test of their own.
PAGES = [ROOT / "README.md", *sorted(path for path in ROOT.glob("docs/*.md") if path.name != "notebook.md")]
# What a command prints is `text`.
LANGUAGES = {"python", "shell", "yaml", "json", "diff", "text"}
# What a page says that the reader has.
TOKENIZERS = {"student_tokenizer": real_tokenizers.smollm2, "teacher_tokenizer": real_tokenizers.mistral1}
GIVEN: dict[str, dict[str, Callable[[], Any]]] = {
    "README.md": {**TOKENIZERS, "student_ids": lambda: real_tokenizers.smollm2()("Hello")["input_ids"]},
    "audit.md": TOKENIZERS,
    "memory.md": {
        "student": lambda: "meta-llama/Llama-3.2-1B-Instruct",
        "teacher": lambda: "Qwen/Qwen3-8B",
        "args": lambda: short_config(output_dir="out"),
        "peft_config": lambda: LoraConfig(task_type="CAUSAL_LM"),
    },
}


def run_shell(example: Example) -> None:
    """Each line is read by what would run it."""
    for line in example.parsed.replace("\\\n", "").splitlines():
        command, *argv = shlex.split(line, comments=True) or ["", ""]
        match command:
            case "":
                continue
            case "trl-xtok":
                assert main(argv) == 0
            case "make":
                targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert {*argv} <= {*targets}
            case "pip":
                check_pip(argv)
            case "python":
                check_python(argv)
            case _:
                raise AssertionError(f"Nothing here knows how to read {line!r}.")


def check_pip(argv: list[str]) -> None:
    """Files are there, and so are the extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    action, *rest = argv
    assert action == "install"
    for flag, value in pairwise(rest):
        assert flag not in ("-c", "-r") or (ROOT / value).is_file()
    for names in re.findall(r"^\.\[(.*)\]", "\n".join(rest), re.MULTILINE):
        assert {*names.split(",")} <= extras.keys()


def check_python(argv: list[str]) -> None:
    """The script is there and knows the flags."""
    if argv[0] == "-m":
        module = ROOT / argv[1].replace(".", "/")
        path = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
    else:
        path = ROOT / argv[0]
    source = path.read_text()
    for flag in argv[1:]:
        assert not flag.startswith("--") or f'"{flag}"' in source, flag


def keep_yaml(example: Example) -> None:
    """The file that the lines after it read."""
    Path("run.yaml").write_text(example.parsed)


def run_diff(example: Example) -> None:
    """Both sides are Python that runs."""
    lines = example.parsed.splitlines()
    for other in "+-":
        exec("\n".join(line[1:] for line in lines if not line.startswith(other)), {})


SYBIL = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser("shell", run_shell),
        CodeBlockParser("yaml", keep_yaml),
        CodeBlockParser("json", lambda example: json.loads(example.parsed) and None),
        CodeBlockParser("diff", run_diff),
    ]
)


@pytest.fixture
def offline_reader(hub_cache, tmp_path, monkeypatch):
    """A reader without a network, a GPU or time: small models, short runs, commands that are read and not run."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr(datasets, "load_dataset", load_stand_in)
    monkeypatch.setattr(trl_xtok, "CrossTokenizerGKDConfig", short_config)
    # Unlike ours, these want a GPU unless told otherwise.
    monkeypatch.setattr(gkd, "GKDConfig", partial(gkd.GKDConfig, use_cpu=True, bf16=False))
    monkeypatch.setattr(gold, "GOLDConfig", partial(gold.GOLDConfig, use_cpu=True, bf16=False))
    for name in ("audit", "plan", "report", "demo_command", "env"):
        monkeypatch.setattr(f"trl_xtok.cli.{name}.run", lambda args: 0)
    for name in ("trl_xtok.training.script.train", "trl_xtok.cli.dry_run.dry_run"):
        monkeypatch.setattr(name, lambda arguments: None)
    monkeypatch.setattr("trl_xtok.cli.gkd._Launch.start", lambda self, argv: 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")


@pytest.mark.usefixtures("offline_reader")
@pytest.mark.parametrize("page", [path for path in PAGES if "```" in path.read_text()], ids=lambda path: path.name)
# PEFT asks the Hub for what is in its cache.
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_code_blocks_run(page):
    if "out/checkpoint-500" in page.read_text():
        leave_a_run(Path())
    document = SYBIL.parse(page)
    document.namespace.update({name: value() for name, value in GIVEN.get(page.name, {}).items()})
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_block_is_of_a_language_that_is_tested(page):
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", page.read_text(), re.MULTILINE)
    assert {*fences[::2]} <= LANGUAGES, "Everything else stands in indented blocks."
    assert {*fences[1::2]} <= {""}


def test_a_wrong_block_fails(tmp_path):
    """Shows that the tests above can fail."""
    page = tmp_path / "page.md"
    for text in ("```python\nnot_there\n```\n", "```shell\nmake nothing\n```\n", "```diff\n-x = 1\n+y\n```\n"):
        page.write_text(text)
        (example,) = SYBIL.parse(page).examples()
        with pytest.raises((NameError, AssertionError)):
            example.evaluate()
