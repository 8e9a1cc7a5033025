"""What `trl_compat.py` and the overridden methods take for granted about TRL 1.16 and transformers 5.23.

A test that fails here after an upgrade names the assumption that no longer holds.
"""

import inspect
import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import GenerationConfig, Trainer
from transformers.distributed.fsdp import is_fsdp_managed_module

from tests import real_tokenizers
from tests.training.runs import shared_tokenizers
from tests.training.tiny_models import prompt_dataset, tiny_model
from trl_xtok import CrossTokenizerGKDTrainer
from trl_xtok.training import trl_compat
from trl_xtok.training.trl_compat import GKDConfig, GKDTrainer, SFTTrainer, TeacherStandIn, call_through_wrapper


GKD_LOGGER = "trl.experimental.gkd.gkd_trainer"
SET_BY_GKD = {
    "beta",
    "generation_config",
    "generation_kwargs",
    "lmbda",
    "seq_kd",
    "teacher_model",
    "temperature",
}


def parameters(function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


@pytest.fixture
def gkd_trainer(tmp_path, load, student_path):
    """GKD itself with a student and whatever teacher is given."""

    def build(teacher: nn.Module, **changes) -> GKDTrainer:
        args = GKDConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **changes)
        data = {"train_dataset": prompt_dataset(), "data_collator": list}
        return GKDTrainer(load(student_path), teacher, args, **data, processing_class=real_tokenizers.smollm2())

    return build


@pytest.fixture
def build(make_trainer):
    """Our trainer for the shared models."""
    return lambda **changes: make_trainer(arguments=shared_tokenizers(), **changes)


@pytest.fixture
def gkd_log():
    """What TRL's logger lets through."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger, handler = logging.getLogger(GKD_LOGGER), Keep()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def test_gkd_refuses_a_teacher_of_another_vocabulary_size(gkd_trainer):
    """If it no longer does, the stand-in can go."""
    with pytest.raises(ValueError, match="teacher model has vocab_size 300"):
        gkd_trainer(tiny_model("llama", 300))


def test_gkd_takes_the_stand_in_as_a_teacher(gkd_trainer, load, student_path):
    trainer = gkd_trainer(TeacherStandIn(load(student_path).config))
    assert isinstance(trainer.teacher_model, TeacherStandIn)
    assert not list(trainer.teacher_model.parameters())


def test_gkd_sets_seven_attributes_beyond_those_of_sft(gkd_trainer, load, student_path, monkeypatch):
    after_parent = {}
    parent_init = SFTTrainer.__init__

    def init(self, *args, **kwargs):
        parent_init(self, *args, **kwargs)
        after_parent.update(vars(self))

    monkeypatch.setattr(SFTTrainer, "__init__", init)
    trainer = gkd_trainer(TeacherStandIn(load(student_path).config))
    assert vars(trainer).keys() - after_parent.keys() == SET_BY_GKD


def test_gkd_samples_from_the_plain_softmax(gkd_trainer, load, student_path):
    config = gkd_trainer(TeacherStandIn(load(student_path).config), temperature=0.7).generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 0.7, 0, 1.0)
    assert config.eos_token_id == load(student_path).generation_config.eos_token_id


def test_our_positional_parameters_are_those_of_gkd():
    ours, gkd = parameters(CrossTokenizerGKDTrainer.__init__), parameters(GKDTrainer.__init__)
    keyword_only = [name for name, parameter in ours.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    assert [name for name in ours if name not in keyword_only] == list(gkd)
    assert keyword_only == ["teacher_processing_class", "quantization_config"]


def test_gkd_has_no_parameter_beyond_those_we_pass_on():
    assert list(parameters(GKDTrainer.__init__)) == [
        *("self", "model", "teacher_model", "args", "data_collator", "train_dataset", "eval_dataset"),
        *("processing_class", "compute_metrics", "callbacks", "optimizers", "preprocess_logits_for_metrics"),
        *("peft_config", "formatting_func"),
    ]


def test_on_policy_outputs_come_from_a_static_function_of_three_tensors():
    assert isinstance(inspect.getattr_static(GKDTrainer, "generate_on_policy_outputs"), staticmethod)
    assert list(parameters(GKDTrainer.generate_on_policy_outputs)) == ["model", "inputs", "generation_config"]
    inputs = {"prompts": torch.tensor([[0, 5], [6, 7]]), "prompt_attention_mask": torch.tensor([[0, 1], [1, 1]])}
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    with torch.no_grad():
        ids, mask, labels = GKDTrainer.generate_on_policy_outputs(tiny_model("llama", 300), inputs, config)
    assert ids.shape == mask.shape == labels.shape == (2, 5)
    assert ids[:, :2].equal(inputs["prompts"])
    assert mask.tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_on_policy_outputs_mask_what_follows_the_first_of_several_stop_tokens():
    """We take the mask for the end of the completion, stop token included."""

    class Writes(nn.Module):
        def generate(self, input_ids, **_):
            return type("Output", (), {"sequences": torch.cat([input_ids, torch.tensor([[9, 4, 3, 0]])], 1)})

    inputs = {"prompts": torch.tensor([[3]]), "prompt_attention_mask": torch.ones(1, 1, dtype=torch.long)}
    config = GenerationConfig(eos_token_id=[3, 4], pad_token_id=0)
    _, mask, _ = GKDTrainer.generate_on_policy_outputs(Writes(), inputs, config)
    assert mask.tolist() == [[1, 1, 1, 0, 0]]


class Wrapper(nn.Module):
    """Stands where DDP stands, and counts its forwards."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


def test_a_call_through_the_wrapper_is_a_forward_of_it_and_leaves_the_module_as_it_was():
    module = nn.Linear(2, 2)
    wrapper, own_forward = Wrapper(module), module.forward
    assert call_through_wrapper(wrapper, module, lambda inside: inside is module)
    assert wrapper.calls == 1
    assert module.forward == own_forward


def test_a_failing_call_through_the_wrapper_leaves_the_module_as_it_was():
    module = nn.Linear(2, 2)
    own_forward = module.forward
    with pytest.raises(ZeroDivisionError):
        call_through_wrapper(Wrapper(module), module, lambda _: 1 / 0)
    assert module.forward == own_forward


def test_without_a_wrapper_the_function_is_simply_called():
    module = nn.Linear(2, 2)
    assert call_through_wrapper(module, module, lambda inside: inside.forward) == module.forward


def test_a_model_that_is_to_generate_with_others_is_taken_for_a_sharded_one():
    module = nn.Linear(2, 2)
    assert not is_fsdp_managed_module(module)
    trl_compat.generate_together(module)
    assert is_fsdp_managed_module(module)


def test_unwrapping_for_generation_takes_what_we_pass():
    expected = ["model", "accelerator", "gather_deepspeed3_params", "generation_kwargs"]
    assert list(parameters(trl_compat.unwrap_model_for_generation)) == [*expected, "gradient_checkpointing_kwargs"]


def test_unwrapping_for_generation_switches_checkpointing_off_and_on_again(build):
    trainer = build(activation_checkpointing=True)
    model = trainer.model
    model.gradient_checkpointing_enable()
    with trl_compat.unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as unwrapped:
        assert unwrapped is model
        assert not unwrapped.is_activation_checkpointing
    assert model.is_activation_checkpointing


def test_gkd_itself_advises_to_migrate_at_our_defaults(gkd_trainer, load, student_path, gkd_log):
    gkd_trainer(TeacherStandIn(load(student_path).config), lmbda=1.0, temperature=1.0)
    assert any("Consider migrating" in message for message in gkd_log)


def test_the_advice_to_migrate_does_not_reach_our_users(build, gkd_log):
    trainer = build()
    assert (trainer.lmbda, trainer.temperature) == (1.0, 1.0)
    assert not gkd_log


def test_other_messages_of_gkd_still_reach_our_users(build, gkd_log, monkeypatch):
    parent_init = SFTTrainer.__init__

    def init(self, *args, **kwargs):
        logging.getLogger(GKD_LOGGER).warning("something else")
        parent_init(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "__init__", init)
    build()
    logging.getLogger(GKD_LOGGER).warning("is fully covered by `DistillationTrainer`, said after our start")
    assert gkd_log == ["something else", "is fully covered by `DistillationTrainer`, said after our start"]


def test_our_start_gives_the_arguments_back_as_they_were(build):
    trainer = build(teacher_model_init_kwargs={"attn_implementation": "eager"})
    assert trainer.args.teacher_model_init_kwargs == {"attn_implementation": "eager"}
    assert trainer.args.model_init_kwargs is None
    assert trainer.args.dataset_kwargs is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("get_batch_samples", ["self", "epoch_iterator", "num_batches", "device"]),
        ("training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("prediction_step", ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        ("log", ["self", "logs", "start_time"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_save_rng_state", ["self", "output_dir"]),
    ],
)
def test_an_overridden_method_has_the_signature_of_its_original(name, expected):
    assert list(parameters(getattr(Trainer, name))) == expected
    assert list(parameters(getattr(CrossTokenizerGKDTrainer, name))) == expected


def test_the_evaluation_loop_gets_its_prefix_by_name():
    """We read it from the keyword arguments."""
    assert parameters(Trainer.evaluation_loop)["metric_key_prefix"].default == "eval"
    assert "metric_key_prefix=metric_key_prefix" in inspect.getsource(Trainer.evaluate)
    assert "metric_key_prefix=metric_key_prefix" in inspect.getsource(Trainer.predict)


def test_sft_does_nothing_in_a_training_step_but_offload_activations(build, monkeypatch):
    """We go past GKD's own training step, which samples, and call this one."""
    trainer = build()
    seen = []
    monkeypatch.setattr(Trainer, "training_step", lambda self, *args: seen.append(args) or torch.tensor(3.0))
    trainer.maybe_activation_offload_context = nullcontext()
    assert SFTTrainer.training_step(trainer, trainer.model, {}, 5) == 3.0
    assert seen == [(trainer.model, {}, 5)]


@pytest.mark.parametrize(("is_scaled", "gradient"), [(True, 2.0), (False, 1.0)])
def test_the_trainer_divides_the_loss_by_the_accumulation_steps_unless_told_that_it_is_scaled(
    build, monkeypatch, is_scaled, gradient
):
    trainer = build(gradient_accumulation_steps=2)
    assert trainer.loss_is_scaled_for_ga
    parameter = nn.Parameter(torch.zeros(()))
    trainer.current_gradient_accumulation_steps = 2
    monkeypatch.setattr(trainer, "loss_is_scaled_for_ga", is_scaled)
    monkeypatch.setattr(trainer, "_prepare_inputs", lambda inputs: inputs)
    monkeypatch.setattr(trainer, "compute_loss", lambda *args, **kwargs: 2 * parameter)
    Trainer.training_step(trainer, trainer.model, {}, 1)
    assert parameter.grad == gradient


def test_the_conversation_test_of_trl_reads_a_prompt_column():
    assert trl_compat.is_conversational({"prompt": [{"role": "user", "content": "Hi"}]})
    assert not trl_compat.is_conversational({"prompt": "Hi"})


def test_nulls_are_removed_from_whatever_is_nested():
    row = {"a": None, "b": [{"c": None, "d": 1}, None], "e": {"f": None}, "g": ""}
    assert trl_compat.remove_none_values(row) == {"b": [{"d": 1}, None], "e": {}, "g": ""}


def test_names_of_accelerate_configurations_become_paths(tmp_path):
    resolve = trl_compat.resolve_accelerate_config_argument
    name, path, *rest = resolve(["--num_processes", "2", "--accelerate_config", "multi_gpu"])
    assert (name, rest) == ("--config_file", ["--num_processes", "2"])
    assert path.endswith("multi_gpu.yaml")
    own = tmp_path / "own.yaml"
    own.touch()
    assert resolve(["--accelerate_config", str(own)]) == ["--config_file", str(own)]
    with pytest.raises(ValueError, match="neither a file nor a valid config"):
        resolve(["--accelerate_config", "nope"])
