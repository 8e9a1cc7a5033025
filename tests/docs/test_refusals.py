"""What the page on the command line says that wrong commands say is what they say."""

import json
import re
import shlex
from pathlib import Path

import huggingface_hub.constants
import pytest

from trl_xtok.cli import main


PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
# What stands for `...` on the page.
RIGHT = """
    --model_name_or_path meta-llama/Llama-3.2-1B-Instruct --teacher_model_name_or_path Qwen/Qwen3-8B
    --dataset_name prompts.jsonl --output_dir out
"""
FILES = {
    "prompts.jsonl": "\n".join(json.dumps({"prompt": text}) for text in ("The sky is", "2 + 2 =")),
    "typo.yaml": "learning_rat: 1.0e-5\n",
    "no.yaml": "save_strategy: no\n",
}


def wrong_commands() -> list[tuple[str, str]]:
    """Each command of the section, and what stands below it in one line."""
    section = PAGE.read_text().partition("## What is refused, and how")[2].partition("\n## ")[0]
    blocks = re.findall(r"^    \$ (trl-xtok .*)\n((?:    (?!\$).*\n)*)", section, re.MULTILINE)
    return [(command, " ".join(said.split())) for command, said in blocks]


@pytest.fixture
def reader(hub_cache, tmp_path, monkeypatch):
    """In a folder with the files of the page, and with its models in the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)


def test_there_are_at_least_ten():
    assert len(wrong_commands()) >= 10


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize(("command", "said"), wrong_commands(), ids=[command for command, _ in wrong_commands()])
# PEFT asks the Hub for what is in its cache.
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_wrong_command_says_what_the_page_says(command, said, capsys):
    argv = shlex.split(command.replace("...", RIGHT))[1:]
    try:
        status = main(argv)
    except SystemExit as leave:
        status = leave.code
    err = capsys.readouterr().err
    start = err.index(f"trl-xtok {argv[0]}: error: ")
    message, _, pointer = err[start:].partition("\n`trl-xtok ")
    # Progress bars may stand before it.
    assert "Traceback" not in err
    assert status == (2 if pointer else 1)
    assert " ".join(message.split()) == said
