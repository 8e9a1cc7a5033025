"""Where a model comes from: a revision of a repository, a folder that brings its own code along."""

import shutil
from pathlib import Path

import pytest

from tests import real_tokenizers
from tests.training.runs import parameters_of, shared_tokenizers
from tests.training.tiny_models import save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError, ModelError
from trl_xtok.training import loading
from trl_xtok.training.config_checks import check_teacher
from trl_xtok.training.teachers import load_teacher


# Revisions.


@pytest.fixture
def cache(tmp_path, teacher_path) -> str:
    """A cache as the Hub's client writes it, with two revisions of `someone/teacher`."""
    repository = tmp_path / "cache" / "models--someone--teacher"
    (repository / "refs").mkdir(parents=True)
    for number, revision in enumerate(["main", "v2"]):
        commit = str(number) * 40
        (repository / "refs" / revision).write_text(commit)
        model = tiny_model("llama", 32000, seed=number, max_position_embeddings=128 * (number + 1))
        save(model, real_tokenizers.mistral1(), repository / "snapshots" / commit)
    return str(tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [({"teacher_model_revision": "v2"}, {}), ({}, {"revision": "v2"})],
    ids=["field", "argument"],
)
def test_a_teacher_is_read_at_its_revision(tmp_path, cache, changes, kwargs):
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"cache_dir": cache, **kwargs}, **changes)
    assert loading.read_teacher_config("someone/teacher", args).max_position_embeddings == 256
    assert len(loading.load_teacher_tokenizer(None, "someone/teacher", args)) == 32000
    expected = parameters_of(tiny_model("llama", 32000, seed=1, max_position_embeddings=256))
    loaded = parameters_of(load_teacher("someone/teacher", args))
    assert all(value.equal(loaded[name]) for name, value in expected.items())


def test_without_a_revision_it_is_the_main_one(tmp_path, cache):
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"cache_dir": cache})
    assert loading.read_teacher_config("someone/teacher", args).max_position_embeddings == 128


def test_a_revision_that_is_not_there_is_named(tmp_path, cache, student_path):
    args = tiny_args(
        tmp_path, teacher_model_revision="v3", teacher_model_init_kwargs={"cache_dir": cache, "local_files_only": True}
    )
    with pytest.raises(ModelError, match="The configuration of 'someone/teacher' cannot be loaded"):
        tiny_trainer(student_path, "someone/teacher", args, **shared_tokenizers())


def test_two_revisions_are_refused_and_the_same_twice_is_not(tmp_path):
    both = {"teacher_model_revision": "v2", "teacher_model_init_kwargs": {"revision": "v3"}}
    with pytest.raises(ConfigError, match="`teacher_model_revision='v2'` and the `revision` 'v3'"):
        tiny_args(tmp_path, **both)
    tiny_args(tmp_path, **both | {"teacher_model_init_kwargs": {"revision": "v2"}})


def test_a_loaded_teacher_has_no_revision(tmp_path, student_path):
    args = tiny_args(tmp_path, teacher_model_revision="v2")
    with pytest.raises(ConfigError, match="`teacher_model_revision='v2'` says how to load the teacher, but"):
        tiny_trainer(student_path, tiny_model("llama", 32000), args, **shared_tokenizers())


# Code that a model brings along.

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class ForeignConfig(LlamaConfig):
    model_type = "foreign"


class ForeignForCausalLM(LlamaForCausalLM):
    config_class = ForeignConfig
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Gives a copy of a model's folder that needs code of its own."""
    # Transformers copies the code there before it runs it.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def copy(path: str, name: str) -> str:
        folder = Path(shutil.copytree(path, tmp_path / name))
        (folder / "foreign.py").write_text(CODE)
        config = (folder / "config.json").read_text()
        for old, new in (('"model_type": "llama"', '"model_type": "foreign"'), ("LlamaFor", "ForeignFor")):
            assert old in config
            config = config.replace(old, new)
        auto_map = '"AutoConfig": "foreign.ForeignConfig", "AutoModelForCausalLM": "foreign.ForeignForCausalLM"'
        (folder / "config.json").write_text(config.replace("{", '{"auto_map": {' + auto_map + "},", 1))
        return str(folder)

    return copy


@pytest.fixture
def sides(foreign, student_path, same_tokenizer_teacher_path):
    return foreign(student_path, "foreign_student"), foreign(same_tokenizer_teacher_path, "foreign_teacher")


OURS, THEIRS = (
    {"model_init_kwargs": {"trust_remote_code": True}},
    {"teacher_model_init_kwargs": {"trust_remote_code": True}},
)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        pytest.param({}, "student", id="by default"),
        pytest.param(THEIRS, "student", id="student"),
        pytest.param(OURS, "teacher", id="teacher"),
        pytest.param(
            {"trust_remote_code": True, "teacher_model_init_kwargs": {"trust_remote_code": False}},
            "teacher",
            id="all but the teacher",
        ),
    ],
)
def test_foreign_code_is_refused_on_both_sides(tmp_path, sides, changes, refused):
    tokenizer = real_tokenizers.smollm2()
    arguments = {"processing_class": tokenizer, "teacher_processing_class": tokenizer}
    with pytest.raises(ModelError, match=rf"(?s)The configuration of '.*foreign_{refused}'.*trust_remote_code=True"):
        tiny_trainer(*sides, tiny_args(tmp_path, **changes), **arguments)
    assert not list((tmp_path / "modules").rglob(f"*{refused}*"))


@pytest.mark.parametrize("changes", [{"trust_remote_code": True}, OURS | THEIRS], ids=["both", "each"])
def test_foreign_code_that_is_trusted_trains(tmp_path, sides, changes):
    trainer = tiny_trainer(*sides, tiny_args(tmp_path, max_steps=2, **changes))
    trainer.train()
    assert trainer.state.global_step == 2
    assert {type(trainer.model).__name__, type(trainer.teacher_model).__name__} == {"ForeignForCausalLM"}


# Offloading, as far as the arguments say.


def test_offloading_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(ConfigError, match="`offload_teacher=True` has no effect on a CPU"):
        tiny_args(tmp_path, offload_teacher=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"load_teacher_in_4bit": True},
        {"teacher_quantization_config": {"load_in_8bit": True}},
        {"teacher_model_init_kwargs": {"device_map": "auto"}},
        {"teacher_model_init_kwargs": {"quantization_config": {"load_in_4bit": True}}},
    ],
)
def test_offloading_is_refused_beside_what_keeps_a_teacher_in_its_place(tmp_path, changes):
    args: CrossTokenizerGKDConfig = tiny_args(tmp_path, **changes)
    # As on a machine with an accelerator.
    args.use_cpu, args.offload_teacher = False, True
    with pytest.raises(ConfigError, match=r"`offload_teacher=True` moves .* Keep one of them"):
        check_teacher(args)
