"""The trainer from end to end, with tiny random models on real tokenizers."""

import json
import math
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback

from tests import real_tokenizers
from tests.training.runs import PACKABLE, changed, logged, lora, parameters_of, shared_tokenizers
from tests.training.tiny_models import prompt_dataset, save, tiny_args, tiny_model, tiny_trainer
from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


@pytest.fixture
def build(make_trainer):
    """The trainer for the shared models; their tokenizers are read once for all tests."""

    def build_trainer(*, arguments=None, **changes):
        return make_trainer(arguments=shared_tokenizers() | (arguments or {}), **changes)

    return build_trainer


# The ways to name models and arguments.


def test_names_are_enough(make_trainer):
    trainer = make_trainer(max_steps=2)
    student, teacher = parameters_of(trainer.model), parameters_of(trainer.teacher_model)
    trainer.train()
    assert trainer.state.global_step == 2
    assert changed(student, trainer.model)
    assert not changed(teacher, trainer.teacher_model)
    assert all(math.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in logged(trainer))


def test_loaded_models_need_no_tokenizers(make_trainer, load, student_path, teacher_path):
    student, teacher = load(student_path), load(teacher_path)
    trainer = make_trainer(student=student, teacher=teacher)
    assert trainer.model is student
    assert trainer.teacher_model is teacher
    before = parameters_of(student)
    trainer.train()
    assert len(changed(before, student)) == len(before), "a full student trains all of its parameters"


def test_the_teacher_gets_no_gradient(build, load, teacher_path):
    teacher = load(teacher_path)
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    build(teacher=teacher).train()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


def test_the_teacher_may_be_named_in_the_arguments(tmp_path, student_path, teacher_path):
    args = tiny_args(tmp_path, teacher_model_name_or_path=teacher_path)
    trainer = CrossTokenizerGKDTrainer(student_path, args=args, train_dataset=prompt_dataset())
    assert trainer.teacher_model.config.vocab_size == 32000


def test_the_arguments_may_be_left_out(student_path, teacher_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = CrossTokenizerGKDTrainer(student_path, teacher_path, train_dataset=prompt_dataset())
    assert trainer.args.output_dir == f"{Path(student_path).name}-GKD"
    assert isinstance(trainer.args, CrossTokenizerGKDConfig)


def test_arguments_serve_a_second_trainer(build, student_path, teacher_path):
    args = build(model_init_kwargs={"dtype": "float32"}).args
    trainer = tiny_trainer(student_path, teacher_path, args)
    assert trainer.args is args


# Students and teachers of every kind.


def test_an_adapter_trains_alone(build, tmp_path, student_path):
    trainer = build(
        arguments={"peft_config": lora()}, max_steps=2, save_strategy="steps", save_steps=2, learning_rate=1e-2
    )
    before = parameters_of(trainer.model)
    trainer.train()
    adapter = {name for name in before if "lora_" in name}
    assert changed(before, trainer.model) == adapter

    base = AutoModelForCausalLM.from_pretrained(student_path).state_dict()
    trained = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in trainer.model.state_dict().items()
        if "lora_" not in name
    }
    assert trained.keys() == base.keys()
    assert all(trained[name].equal(base[name]) for name in base), "the base must stay bit-identical"

    checkpoint = {file.name for file in (tmp_path / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in checkpoint
    assert not {name for name in checkpoint if name.startswith(("model", "pytorch_model"))}


def test_a_student_with_an_adapter_already_on_it_trains(build, load, student_path):
    from peft import get_peft_model

    student = get_peft_model(load(student_path), lora())
    trainer = build(student=student, learning_rate=1e-2)
    before = parameters_of(trainer.model)
    trainer.train()
    assert {"lora_" in name for name in changed(before, trainer.model)} == {True}


def test_a_head_that_is_trained_beside_an_adapter_trains(build):
    config = lora(modules_to_save=["lm_head"])
    trainer = build(arguments={"peft_config": config}, learning_rate=1e-2)
    before = parameters_of(trainer.model)
    trainer.train()
    names = changed(before, trainer.model)
    assert [name for name in names if "modules_to_save" in name]
    assert not [name for name in names if "original_module" in name]


@pytest.fixture(scope="module")
def packable_teacher_path(tmp_path_factory) -> str:
    model = tiny_model("llama", 32000, seed=5, **PACKABLE)
    return save(model, real_tokenizers.mistral1(), tmp_path_factory.mktemp("packable_teacher"))


@pytest.mark.parametrize("adapter", [lambda: None, lora], ids=["full student", "LoRA"])
def test_a_four_bit_teacher_trains_a_student(build, packable_teacher_path, adapter):
    trainer = build(
        teacher=packable_teacher_path,
        arguments={"peft_config": adapter()},
        load_teacher_in_4bit=True,
        learning_rate=1e-2,
    )
    layers = [module for module in trainer.teacher_model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    before = {name: value.clone() for name, value in trainer.teacher_model.state_dict().items()}
    student = parameters_of(trainer.model)
    trainer.train()
    assert changed(student, trainer.model)
    assert logged(trainer)[0]["xtok/coverage"] > 0
    assert all(layer.weight.dtype == torch.uint8 for layer in layers)
    dequantized = trainer.teacher_model.state_dict()
    for name, value in before.items():
        # bitsandbytes packs the weights anew at the first forward on a CPU.
        if value.is_floating_point():
            assert value.equal(dequantized[name]), name
    assert all(parameter.grad is None for parameter in trainer.teacher_model.parameters())


def test_a_four_bit_teacher_scores_like_the_model_it_was_made_of(build, packable_teacher_path):
    """Not equal, but far closer than to chance."""
    four_bit = build(teacher=packable_teacher_path, load_teacher_in_4bit=True).teacher
    full = build(teacher=packable_teacher_path).teacher
    prompts, completions = [[1, 2, 3]], [list(range(300, 340))]
    quantized, exact = (each.token_logps(prompts, completions) for each in (four_bit, full))
    assert torch.corrcoef(torch.stack([quantized, exact]))[0, 1] > 0.8
    assert not quantized.equal(exact)


@pytest.mark.parametrize("adapter", [lambda: None, lora], ids=["full student", "LoRA"])
def test_activation_checkpointing_changes_nothing(build, adapter):
    """It is on by default, as in TRL."""

    def log(**changes):
        trainer = build(arguments={"peft_config": adapter()}, max_steps=2, **changes)
        trainer.train()
        return [entry["grad_norm"] for entry in logged(trainer)]

    assert CrossTokenizerGKDConfig().activation_checkpointing
    assert log(activation_checkpointing=True) == pytest.approx(log(activation_checkpointing=False), rel=1e-4)


@pytest.fixture
def four_bit_student(build, tmp_path):
    """QLoRA, on a CPU."""
    sizes = PACKABLE | {"tie_word_embeddings": False}
    path = save(tiny_model("llama", 49152, **sizes), real_tokenizers.smollm2(), tmp_path / "student")
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    adapter = lora(init_lora_weights=False)
    return build(student=path, arguments={"peft_config": adapter, "quantization_config": four_bit}, learning_rate=1e-2)


def test_a_four_bit_student_trains_its_adapter(four_bit_student):
    assert [module for module in four_bit_student.model.modules() if isinstance(module, Linear4bit)]
    assert four_bit_student.args.model_init_kwargs is None, "the arguments stay as they were written"
    before = parameters_of(four_bit_student.model)
    four_bit_student.train()
    names = changed(before, four_bit_student.model)
    assert names == {name for name in before if "lora_" in name}


def test_gradients_pass_through_a_four_bit_student(four_bit_student):
    """After rollouts in evaluation mode, bitsandbytes would use a kernel without gradient on some CPUs."""
    trainer, model = four_bit_student, four_bit_student.model
    prompts = trainer.data_collator(prompt_dataset().to_list())
    (inputs,), count = trainer.get_batch_samples(iter([prompts]), 1, trainer.args.device)

    def gradients():
        model.zero_grad()
        trainer.compute_loss(model, inputs, num_items_in_batch=count).backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if "lora_" in name}

    quantized = gradients()
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, Linear4bit):
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                plain = nn.Linear(*reversed(weight.shape), bias=False)
                plain.weight = nn.Parameter(weight, requires_grad=False)
                setattr(parent, name, plain)
    for name, gradient in gradients().items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(quantized[name], gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


# Datasets.


def test_a_stream_of_prompts_trains(build):
    trainer = build(arguments={"train_dataset": prompt_dataset().to_iterable_dataset()}, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_an_evaluation_dataset_is_stored_as_it_is(build):
    for dataset in (prompt_dataset(), {"one": prompt_dataset()}, prompt_dataset().to_iterable_dataset(), None):
        assert build(arguments={"eval_dataset": dataset}).eval_dataset is dataset


# What a run leaves behind.


def test_a_saved_student_loads_as_it_was(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not changed(parameters_of(trainer.model), loaded)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.encode("Hello there") == trainer.processing_class.encode("Hello there")


def test_a_saved_adapter_loads_onto_its_student(build, tmp_path, student_path):
    trainer = build(arguments={"peft_config": lora()}, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(student_path), tmp_path / "saved")
    assert not changed(parameters_of(trainer.model), loaded)


def test_the_model_is_tagged_for_the_hub(build):
    assert {"trl", "gkd", "trl-xtok"} <= set(build().model.model_tags)


def test_a_run_writes_down_its_arguments(build, tmp_path):
    trainer = build(teacher_model_init_kwargs={"dtype": torch.float32}, dropped_advantage=-1.0)
    written = json.loads(trainer.args.to_json_string())
    assert written["dropped_advantage"] == -1.0
    assert written["teacher_model_init_kwargs"] == {"dtype": "float32"}


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_callbacks_are_called(build):
    trainer = build(arguments={"callbacks": [Stop()]}, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 1
