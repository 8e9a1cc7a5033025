"""Every kind of teacher scores tokens as a plain forward of the same model does."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from gguf import GGMLQuantizationType
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests import real_tokenizers
from tests.training.gguf_files import write_gguf
from tests.training.reference import token_logps
from tests.training.runs import PACKABLE, lora, shared_tokenizers
from tests.training.tiny_models import save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError, ModelError
from trl_xtok.training import loading
from trl_xtok.training.teachers import LocalTeacher, load_teacher


# Of unequal length, so that they are padded.
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
COMPLETIONS = [[10, 11, 12, 13], [20, 21], list(range(100, 120))]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# Without a threshold for outliers, which are looked for in the whole micro-batch.
INT8 = {"load_in_8bit": True, "llm_int8_threshold": 0.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    model = tiny_model("llama", 32000, seed=5, **PACKABLE)
    return save(model, real_tokenizers.mistral1(), tmp_path_factory.mktemp("teacher"))


def scores(teacher: str | PreTrainedModel, folder: Path, **changes: Any) -> tuple[torch.Tensor, LocalTeacher]:
    args = tiny_args(folder, **changes)
    local = LocalTeacher(load_teacher(teacher, args), args)
    return local.token_logps(PROMPTS, COMPLETIONS), local


@torch.no_grad()
def plain(model: PreTrainedModel) -> torch.Tensor:
    """Each completion alone, from all of its logits."""
    model.eval()
    return torch.cat([token_logps(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]).float()


KINDS = {
    "float32": ({}, {"dtype": torch.float32}, 1e-5),
    "bfloat16": ({"bf16": True}, {"dtype": torch.bfloat16}, 0.05),
    "bfloat16, asked for": ({"teacher_model_init_kwargs": {"dtype": "bfloat16"}}, {"dtype": torch.bfloat16}, 0.05),
    "float16, as JSON": ({"teacher_model_init_kwargs": '{"dtype": "float16"}'}, {"dtype": torch.float16}, 0.01),
    "8-bit": ({"teacher_quantization_config": INT8}, {"quantization_config": BitsAndBytesConfig(**INT8)}, 1e-4),
    "4-bit": ({"load_teacher_in_4bit": True}, {"quantization_config": BitsAndBytesConfig(**NF4)}, 1e-4),
    "4-bit, as an argument for loading": (
        {"teacher_model_init_kwargs": {"quantization_config": NF4}},
        {"quantization_config": BitsAndBytesConfig(**NF4)},
        1e-4,
    ),
    "on its own device": ({"teacher_model_init_kwargs": {"device_map": {"": "cpu"}}}, {}, 1e-5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_scores_as_a_plain_forward_does(tmp_path, path, kind):
    changes, kwargs, tolerance = KINDS[kind]
    actual, _ = scores(path, tmp_path, **changes)
    expected = plain(AutoModelForCausalLM.from_pretrained(path, **kwargs))
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
    if kwargs.get("dtype") != torch.float32 and "device" not in kind:
        assert not torch.allclose(actual, scores(path, tmp_path)[0], atol=1e-4), "the precision must be another one"


@pytest.mark.parametrize(
    ("changes", "layer"),
    [({"load_teacher_in_4bit": True}, Linear4bit), ({"teacher_quantization_config": INT8}, Linear8bitLt)],
    ids=["4-bit", "8-bit"],
)
def test_a_quantized_teacher_is_near_the_model_it_was_made_of(tmp_path, path, changes, layer):
    actual, local = scores(path, tmp_path, **changes)
    assert [module for module in local.model.modules() if isinstance(module, layer)]
    exact, _ = scores(path, tmp_path)
    assert torch.corrcoef(torch.stack([actual, exact]))[0, 1] > 0.8


def test_outliers_make_an_eight_bit_teacher_depend_on_the_micro_batch(tmp_path, path):
    """Why the documentation names `llm_int8_threshold`."""
    args = tiny_args(tmp_path, teacher_quantization_config={"load_in_8bit": True})
    local = LocalTeacher(load_teacher(path, args), args)
    together = local.token_logps(PROMPTS, COMPLETIONS)
    alone = [local.token_logps([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert 1e-3 < (torch.cat(alone) - together).abs().max() < 0.5


# GGUF.


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_file_scores_as_the_values_in_it_do(tmp_path, kind):
    model = tiny_model("qwen2", 300, seed=6, **PACKABLE, tie_word_embeddings=False)
    write_gguf(model, tmp_path / "tiny.gguf", GGMLQuantizationType[kind])
    actual, local = scores(str(tmp_path), tmp_path, teacher_model_init_kwargs={"gguf_file": "tiny.gguf"})
    torch.testing.assert_close(actual, plain(model), atol=1e-4, rtol=0)
    assert local.reach.context == 256


def test_a_gguf_teacher_trains_a_student(tmp_path, student_path):
    model = tiny_model("qwen2", len(real_tokenizers.mistral1()), seed=6, **PACKABLE)
    write_gguf(model, tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"gguf_file": "tiny.gguf"}, max_steps=2)
    trainer = tiny_trainer(student_path, str(tmp_path), args, **shared_tokenizers())
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_gguf_file_that_is_not_there_is_named(tmp_path, student_path):
    args = tiny_args(tmp_path, teacher_model_init_kwargs={"gguf_file": "missing.gguf"})
    with pytest.raises(ModelError, match=r"There is no file 'missing\.gguf' in"):
        tiny_trainer(student_path, str(tmp_path), args, **shared_tokenizers())


# A folder in the folder.


def test_a_teacher_in_a_subfolder_trains_a_student(tmp_path, student_path, teacher_path):
    shutil.copytree(teacher_path, tmp_path / "models" / "inner")
    args = tiny_args(tmp_path / "run", teacher_model_init_kwargs={"subfolder": "inner"}, max_steps=1)
    trainer = tiny_trainer(student_path, str(tmp_path / "models"), args, **shared_tokenizers())
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_subfolder_that_is_not_there_or_holds_no_model_is_named(tmp_path, student_path):
    (tmp_path / "empty").mkdir()
    for subfolder, said in (
        ("missing", "There is no folder 'missing' in"),
        ("empty", "empty' holds no configuration"),
    ):
        args = tiny_args(tmp_path, teacher_model_init_kwargs={"subfolder": subfolder})
        with pytest.raises(ModelError, match=said):
            tiny_trainer(student_path, str(tmp_path), args, **shared_tokenizers())


# Adapters.


@pytest.fixture(scope="module")
def adapter_path(path, tmp_path_factory) -> str:
    torch.manual_seed(7)
    config = lora(init_lora_weights=False, modules_to_save=["lm_head"])
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    folder = str(tmp_path_factory.mktemp("adapter"))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [({}, {}), ({"load_teacher_in_4bit": True}, {"quantization_config": BitsAndBytesConfig(**NF4)})],
    ids=["float32", "4-bit"],
)
def test_an_adapter_scores_as_on_its_base_model(tmp_path, path, adapter_path, changes, kwargs):
    base = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    without = plain(base)
    actual, _ = scores(adapter_path, tmp_path, **changes)
    torch.testing.assert_close(actual, plain(PeftModel.from_pretrained(base, adapter_path)), atol=1e-4, rtol=0)
    assert not torch.allclose(actual, without, atol=0.1)


@pytest.mark.parametrize("has_tokenizer", [False, True])
def test_the_tokenizer_of_an_adapter_is_its_own_or_that_of_its_base_model(
    tmp_path, student_path, adapter_path, has_tokenizer
):
    folder = shutil.copytree(adapter_path, tmp_path / "adapter")
    if has_tokenizer:
        real_tokenizers.qwen3().save_pretrained(folder)
    tokenizer = loading.load_teacher_tokenizer(None, str(folder), tiny_args(tmp_path))
    assert len(tokenizer) == len(real_tokenizers.qwen3() if has_tokenizer else real_tokenizers.mistral1())


def test_an_adapter_by_its_path_trains_a_student(tmp_path, student_path, adapter_path):
    trainer = tiny_trainer(student_path, adapter_path, tiny_args(tmp_path, max_steps=2))
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(trainer.data_collator.teacher_tokenizer) == 32000


def test_an_adapter_with_a_head_of_its_own_says_what_to_do(tmp_path, path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), LoraConfig(target_modules=["lm_head"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"has an adapter of its own .*`merge_and_unload`"):
        scores(str(tmp_path / "adapter"), tmp_path)


def test_an_adapter_is_no_student(tmp_path, adapter_path, teacher_path, path):
    with pytest.raises(ConfigError, match=rf"is an adapter for '{path}'.*AutoPeftModelForCausalLM"):
        tiny_trainer(adapter_path, teacher_path, tiny_args(tmp_path), **shared_tokenizers())


# Devices.


class Stop(Exception):
    pass


def test_inputs_go_where_the_teacher_is(tmp_path, path):
    """No real number comes out of a meta device, but what goes in can be seen."""
    args = tiny_args(tmp_path)
    local = LocalTeacher(load_teacher(path, args), args)
    local.model.to("meta")
    seen = []

    def look(module, arguments, keywords):
        seen.extend(keywords[name].device.type for name in ("input_ids", "attention_mask"))
        raise Stop

    local.model.model.register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(Stop):
        local.token_logps(PROMPTS, COMPLETIONS)
    assert seen == ["meta", "meta"]


@pytest.mark.parametrize(
    ("kwargs", "device"), [({}, "meta"), ({"device_map": None}, "meta"), ({"device_map": {"": "cpu"}}, "cpu")]
)
def test_a_teacher_stays_where_its_device_map_puts_it(tmp_path, path, monkeypatch, kwargs, device):
    args = tiny_args(tmp_path, teacher_model_init_kwargs=kwargs)
    monkeypatch.setattr(CrossTokenizerGKDConfig, "device", torch.device("meta"))
    assert load_teacher(path, args).device.type == device


def on_disk(*names: str, folder: Path) -> dict[str, Any]:
    parts = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head"]
    places = {name: "disk" if name in names else "cpu" for name in parts}
    return {"device_map": places, "offload_folder": str(folder / "offloaded")}


def test_layers_that_are_offloaded_change_nothing(tmp_path, path):
    kwargs = on_disk("model.layers.1", folder=tmp_path)
    actual, local = scores(path, tmp_path, teacher_model_init_kwargs=kwargs)
    assert local.model.model.layers[1].mlp.down_proj.weight.is_meta
    torch.testing.assert_close(actual, scores(path, tmp_path)[0])


@pytest.mark.parametrize(("part", "kind"), [("lm_head", "Linear"), ("model.embed_tokens", "Embedding")])
def test_an_offloaded_head_or_embedding_is_refused(tmp_path, path, part, kind):
    kwargs = on_disk(part, folder=tmp_path)
    with pytest.raises(ModelError, match=rf"weight of its {kind} off every device .*`device_map`"):
        scores(path, tmp_path, teacher_model_init_kwargs=kwargs)


# Offloading between scorings. Without a second device the moves can be seen, but not what they save.


def test_an_offloaded_teacher_goes_back_after_an_error(tmp_path):
    args = tiny_args(tmp_path)
    args.offload_teacher = True
    local, places = LocalTeacher(tiny_model("llama", 300), args), []
    local.model.to = places.append
    with pytest.raises(Stop), local.on_device():
        raise Stop
    assert places == [args.device, "cpu"]


def test_a_teacher_to_be_offloaded_waits_in_main_memory(tmp_path, path, monkeypatch):
    args = tiny_args(tmp_path)
    args.offload_teacher = True
    monkeypatch.setattr(CrossTokenizerGKDConfig, "device", torch.device("meta"))
    assert load_teacher(path, args).device.type == "cpu"


def test_a_quantized_or_scattered_teacher_cannot_be_offloaded(tmp_path, path):
    four_bit = AutoModelForCausalLM.from_pretrained(path, quantization_config=BitsAndBytesConfig(**NF4))
    scattered = AutoModelForCausalLM.from_pretrained(path, **on_disk("model.layers.1", folder=tmp_path))
    args = tiny_args(tmp_path)
    args.offload_teacher = True
    for teacher, found in ((four_bit, "on cpu, some of them in torch.uint8"), (scattered, "on cpu, meta")):
        with pytest.raises(ConfigError, match=rf"`offload_teacher=True` moves .* LlamaForCausalLM are {found}\."):
            load_teacher(teacher, args)


@pytest.mark.gpu
def test_a_teacher_leaves_the_device_between_scorings(tmp_path, path):
    args = tiny_args(tmp_path, use_cpu=False, bf16=False, fp16=False, offload_teacher=True)
    local = LocalTeacher(load_teacher(path, args), args)
    before = torch.cuda.memory_allocated()
    with local.on_device():
        assert local.model.device.type == "cuda"
        actual = local.token_logps(PROMPTS, COMPLETIONS).cpu()
    assert (local.model.device.type, torch.cuda.memory_allocated()) == ("cpu", before)
    torch.testing.assert_close(actual, scores(path, tmp_path)[0], atol=1e-3, rtol=0)
