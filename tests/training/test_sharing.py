"""What a run gives to others: the model card, and what is pushed to the Hub."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from peft import get_peft_model

from tests.training.hub_stand_in import hub
from tests.training.runs import lora, shared_tokenizers
from trl_xtok.training import model_card


ROOT = Path(__file__).parents[2]
PUSH = """
import sys
from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import tiny_args, tiny_trainer

student, teacher, folder = sys.argv[1:]
args = tiny_args(folder, push_to_hub=True, hub_model_id="someone/small", hub_token="hf_secret", log_completions=True)
trainer = tiny_trainer(student, teacher, args, **shared_tokenizers())
trainer.train()
trainer.push_to_hub(dataset_name="someone/prompts")
"""


@pytest.fixture
def build(make_trainer):
    def build_trainer(*, arguments=None, **changes):
        return make_trainer(arguments=shared_tokenizers() | (arguments or {}), **changes)

    return build_trainer


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_checkpoint_has_a_model_card_with_teacher_method_and_paper(build, tmp_path, teacher_path):
    build(save_strategy="steps", save_steps=1).train()
    card = (tmp_path / "README.md").read_text()
    assert set(front_matter(card)["tags"]) == {"generated_from_trainer", "trl", "gkd", "trl-xtok"}
    assert "trained with Cross-Tokenizer GKD, a method introduced in [Breaking the Tokenizer Barrier" in card
    assert f"The teacher was `{Path(teacher_path).name}`; what was minimised is the objective `chunk_rkl`." in card
    assert str(Path(teacher_path).parent) not in card, "nobody else needs to know that folder"
    assert "https://huggingface.co/papers/2606.09456" in card
    assert "@article{niu2026breaking" in card
    assert f"### Framework versions\n\n- trl-xtok: {version('trl-xtok')}\n- TRL: {version('trl')}\n" in card


@pytest.mark.parametrize("adapter", [lambda: None, lora], ids=["full student", "LoRA"])
def test_student_and_teacher_of_the_hub_are_linked(build, tmp_path, adapter):
    trainer = build(arguments={"peft_config": adapter()})
    trainer.model.config._name_or_path = "someone/student"
    trainer.teacher.name = "someone/teacher"
    trainer.create_model_card(model_name="mine", dataset_name="someone/prompts", tags=["mine"])
    card = (tmp_path / "README.md").read_text()
    assert "The teacher was [someone/teacher](https://huggingface.co/someone/teacher);" in card
    assert "a fine-tuned version of [someone/student](https://huggingface.co/someone/student) on the" in card
    written = front_matter(card)
    assert (written["base_model"], written["datasets"]) == ("someone/student", "someone/prompts")
    assert {"mine", "trl-xtok"} <= set(written["tags"])


def test_a_teacher_with_an_adapter_is_named_by_it(build, tmp_path, load, teacher_path):
    """And not by its base, which did not teach."""
    get_peft_model(load(teacher_path), lora()).save_pretrained(tmp_path / "an_adapter")
    build(teacher=str(tmp_path / "an_adapter")).create_model_card()
    assert "The teacher was `an_adapter`;" in (tmp_path / "README.md").read_text()


def test_a_teacher_without_a_name_is_said_to_have_none(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(model_card.VERSIONS)
    model_card.add_teachers(card, [""], "exact_jsd")
    assert card.read_text().startswith("The teacher was a model without a name; what was minimised")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("some.one/teacher-1_b", "[some.one/teacher-1_b](https://huggingface.co/some.one/teacher-1_b)"),
        ("teacher", "`teacher`"),
        ("../teacher", "`../teacher`"),
        ("a/b)\n\n# [click](http://x", "`a/b) # [click](http://x`"),
        ("`x` <b>", "`x <b>`"),
        ("/models/`x`\n", "`x`"),
        ("``", "a model without a name"),
        ("x" * 5000 + "\0", "`" + "x" * 5000 + "\0`"),
    ],
)
def test_what_a_server_calls_its_model_is_text_in_a_card(tmp_path, name, shown):
    (card := tmp_path / "README.md").write_text(model_card.VERSIONS)
    model_card.add_teachers(card, [name], "chunk_rkl")
    assert card.read_text().startswith(f"The teacher was {shown}; what was minimised")


def test_a_package_that_is_run_from_its_sources_has_a_card_too(tmp_path, monkeypatch):
    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(model_card, "version", not_installed)
    (card := tmp_path / "README.md").write_text(model_card.VERSIONS)
    model_card.add_teachers(card, [""], "exact_jsd")
    assert card.read_text().endswith("- trl-xtok: unknown\n")


def test_a_run_can_be_pushed_to_the_hub(tmp_path, student_path, teacher_path):
    with hub() as server:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PUSH, student_path, teacher_path, str(tmp_path)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not server.unknown
    assert server.tokens == {"Bearer hf_secret"}
    assert {(asked["organization"], asked["name"]) for asked in server.repositories} == {("someone", "small")}
    message, files = server.commits[-1]
    assert message == "End of training"
    kept = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "completions/completions_00001.parquet"}
    assert files.keys() >= kept
    for name, content in files.items():
        assert content == (tmp_path / name).read_bytes()
    card = files["README.md"].decode()
    assert 'model="someone/small"' in card
    assert front_matter(card)["datasets"] == "someone/prompts"
    assert "trl-xtok" in front_matter(card)["tags"]
    assert f"The teacher was `{Path(teacher_path).name}`" in card
