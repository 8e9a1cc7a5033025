"""Every kind of student: what it trains, what it saves, that it can be resumed and exported."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests import real_tokenizers
from tests.training.runs import PACKABLE, changed, lora, parameters_of, shared_tokenizers
from tests.training.tiny_models import save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDTrainer
from trl_xtok.training.loading import prepare_student


def four_bit() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def eight_bit() -> BitsAndBytesConfig:
    # Without a threshold for outliers, which are looked for in the whole micro-batch.
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


@dataclass(frozen=True)
class Kind:
    """How a student is asked for, what its trained parameters are called, and what its base is made of."""

    arguments: Callable[[], dict[str, Any]]
    trained: tuple[str, ...]
    layer: type = torch.nn.Linear
    quantization: Callable[[], BitsAndBytesConfig | None] = lambda: None


KINDS = {
    "LoRA": Kind(lambda: {"peft_config": lora()}, ("lora_",)),
    "DoRA": Kind(lambda: {"peft_config": lora(use_dora=True)}, ("lora_",)),
    "rsLoRA": Kind(lambda: {"peft_config": lora(use_rslora=True)}, ("lora_",)),
    "LoRA and the head": Kind(
        lambda: {"peft_config": lora(modules_to_save=["lm_head"])}, ("lora_", "lm_head.modules_to_save")
    ),
    "QLoRA": Kind(lambda: {"peft_config": lora()}, ("lora_",), Linear4bit, four_bit),
    "QDoRA": Kind(lambda: {"peft_config": lora(use_dora=True)}, ("lora_",), Linear4bit, four_bit),
    "LoRA on 8 bits": Kind(lambda: {"peft_config": lora()}, ("lora_",), Linear8bitLt, eight_bit),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    model = tiny_model("llama", 49152, **PACKABLE)
    return save(model, real_tokenizers.smollm2(), tmp_path_factory.mktemp("student"))


def train(
    student: str, teacher: str, folder: Path, arguments: dict[str, Any], resume: str | None = None
) -> tuple[CrossTokenizerGKDTrainer, dict[str, Tensor]]:
    """Two steps with a checkpoint after each; also gives the parameters from before."""
    args = tiny_args(folder, max_steps=2, save_strategy="steps", save_steps=1, learning_rate=1e-2)
    trainer = tiny_trainer(student, teacher, args, **shared_tokenizers(), **arguments)
    before = parameters_of(trainer.model)
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 2
    return trainer, before


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    return model.eval()(input_ids=torch.arange(100, 116)[None]).logits


# The full student.


def test_a_full_student_trains_and_resumes(tmp_path, path, teacher_path):
    trainer, before = train(path, teacher_path, tmp_path, {})
    assert changed(before, trainer.model) == set(before)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert not changed(parameters_of(trainer.model), saved)
    resumed, _ = train(path, teacher_path, tmp_path / "again", {}, str(tmp_path / "checkpoint-1"))
    assert not changed(parameters_of(trainer.model), resumed.model)


# Students with an adapter.


@dataclass(frozen=True)
class Run:
    kind: Kind
    folder: Path
    trainer: CrossTokenizerGKDTrainer
    before: dict[str, Tensor]

    @property
    def trained(self) -> set[str]:
        return {name for name in self.before if any(part in name for part in self.kind.trained)}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def run(request, path, teacher_path, tmp_path_factory) -> Run:
    kind, folder = request.param, tmp_path_factory.mktemp("run")
    arguments = kind.arguments() | {"quantization_config": kind.quantization()}
    return Run(kind, folder, *train(path, teacher_path, folder, arguments))


def test_the_base_is_what_was_asked_for_and_stays_bit_for_bit(run):
    assert len([module for module in run.trainer.model.modules() if type(module) is run.kind.layer]) >= 14
    assert changed(run.before, run.trainer.model) == run.trained
    trainable = {name: p.dtype for name, p in run.trainer.model.named_parameters() if p.requires_grad}
    assert trainable == dict.fromkeys(run.trained, torch.float32)


def test_a_checkpoint_holds_what_was_trained_alone(run):
    files = {file.name for file in (run.folder / "checkpoint-2").iterdir()}
    assert not [name for name in files if name.startswith(("model", "pytorch_model"))]
    saved = load_file(run.folder / "checkpoint-2" / "adapter_model.safetensors")
    names = {name.replace(".default", "").replace(".modules_to_save", "") for name in run.trained}
    # DoRA's magnitude is a module of one weight, and saved as a vector.
    assert {name.replace("_vector.weight", "_vector") for name in names} == set(saved)


@pytest.fixture
def reloaded(run, path) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(path, quantization_config=run.kind.quantization())
    model = PeftModel.from_pretrained(base, run.folder / "checkpoint-2")
    # Else bitsandbytes packs 4-bit weights on some CPUs, for another kernel; PEFT misreads a packed weight for DoRA.
    prepare_student(model)
    return model


def test_a_saved_adapter_gives_the_same_logits(run, reloaded, path):
    torch.testing.assert_close(logits(reloaded), logits(run.trainer.model), atol=1e-4, rtol=0)
    base = AutoModelForCausalLM.from_pretrained(path, quantization_config=run.kind.quantization())
    assert (logits(reloaded) - logits(base)).abs().max() > 0.1


def test_a_merged_student_gives_the_same_logits(run, path, tmp_path):
    """Of a quantized student the adapter is merged into the base as it was before the quantization."""
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), run.folder / "checkpoint-2")
    expected = logits(adapted)
    adapted.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)


def test_a_resumed_run_ends_with_the_same_weights(run, path, teacher_path, tmp_path):
    arguments = run.kind.arguments() | {"quantization_config": run.kind.quantization()}
    resumed, _ = train(path, teacher_path, tmp_path, arguments, str(run.folder / "checkpoint-1"))
    assert not changed(parameters_of(run.trainer.model), resumed.model)


# Refusals.


def test_a_quantized_student_without_an_adapter_is_refused(tmp_path, path, teacher_path):
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        train(path, teacher_path, tmp_path, {"quantization_config": four_bit()})


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("targets", [["lm_head"], r".*\.q_proj|lm_head"], ids=["head alone", "pattern"])
def test_an_adapter_on_the_head_is_refused(tmp_path, path, teacher_path, is_loaded, targets):
    config = lora(target_modules=targets)
    student = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config) if is_loaded else path
    with pytest.raises(ValueError, match="adapter to `lm_head` is not supported"):
        train(student, teacher_path, tmp_path, {} if is_loaded else {"peft_config": config})


def test_all_linear_leaves_the_head_out(tmp_path, path, teacher_path):
    trainer, before = train(path, teacher_path, tmp_path, {"peft_config": lora(target_modules="all-linear")})
    names = changed(before, trainer.model)
    assert len(names) == 2 * 2 * 7, "two matrices for each projection of both layers"
    assert not [name for name in names if "lm_head" in name]
