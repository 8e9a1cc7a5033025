"""Settings of `TrainingArguments` that the parent reads: they do here what they do there."""

import math

import pytest
import torch
from datasets import Dataset

from tests.training.runs import logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from trl_xtok.errors import CheckpointError, ConfigError


@pytest.fixture
def build(make_trainer):
    def build_trainer(*, arguments=None, **changes):
        arguments = shared_tokenizers() | {"eval_dataset": prompt_dataset(PROMPTS[:2])} | (arguments or {})
        return make_trainer(arguments=arguments, **{"max_new_tokens": 4, "max_steps": 2} | changes)

    return build_trainer


def losses(trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in logged(trainer)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, student_path, teacher_path) -> list[float]:
    """The losses of a run that sets nothing."""
    args = tiny_args(tmp_path_factory.mktemp("plain"), max_new_tokens=4, max_steps=2)
    return losses(tiny_trainer(student_path, teacher_path, args, **shared_tokenizers()))


def test_what_concerns_the_machine_changes_no_loss(build, expected):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2}
    debugging = {"debug": "underflow_overflow", "skip_memory_metrics": False, "torch_empty_cache_steps": 1}
    assert losses(build(enable_jit_checkpoint=True, **workers, **debugging)) == expected


def test_evaluation_at_the_start_and_with_gathered_objects_changes_no_loss(build, expected):
    trainer = build(eval_strategy="steps", eval_steps=2, eval_on_start=True, eval_use_gather_object=True)
    assert losses(trainer) == expected
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [0, 2]


def test_the_seed_decides_what_is_drawn(build, expected):
    assert losses(build(seed=7)) != expected


def test_half_as_many_rows_where_memory_runs_out(build, expected, monkeypatch):
    """In the scored forward and while sampling, both with more than two rows."""
    trainer = build(auto_find_batch_size=True, per_device_train_batch_size=4)
    compute_loss = trainer.compute_loss

    def run_out(rows):
        if rows > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    def loss(model, inputs, **kwargs):
        run_out(len(inputs["input_ids"]))
        return compute_loss(model, inputs, **kwargs)

    def write(*args, **kwargs):
        run_out(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", loss)
    assert losses(trainer) == expected
    trainer = build(auto_find_batch_size=True, per_device_train_batch_size=4)
    generate = trainer.model.generate
    monkeypatch.setattr(trainer.model, "generate", write)
    assert losses(trainer) == expected


def test_tokens_seen_are_those_that_are_no_padding(build):
    counted = {}
    for kind in ("all", "non_padding"):
        trainer = build(include_num_input_tokens_seen=kind)
        trainer.train()
        counted[kind] = logged(trainer)[-1]["num_input_tokens_seen"]
        assert kind == "all" or counted[kind] == logged(trainer)[-1]["num_tokens"]
    assert counted["non_padding"] < counted["all"]


def test_prompts_of_like_length_come_together(build):
    """Transformers sorts within groups of rows and begins with the longest."""
    rows = Dataset.from_dict({"prompt": PROMPTS, "length": [len(prompt) for prompt in PROMPTS]})
    for seed in (1, 2, 3):
        arguments = {"train_dataset": rows, "eval_dataset": rows}
        trainer = build(arguments=arguments, train_sampling_strategy="group_by_length", seed=seed)
        first = next(iter(trainer.get_train_dataloader()))["prompts"][0]
        assert trainer.processing_class.decode(first) == max(PROMPTS, key=len)


def test_optimizer_and_schedule(build):
    trainer = build(optim="sgd", optim_args="momentum=0.5", lr_scheduler_type="constant_with_warmup", warmup_steps=1)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    assert [entry["learning_rate"] for entry in logged(trainer)] == [0.0, 1e-3]


def test_gradients_are_clipped(build):
    trainer = build(optim="sgd", max_grad_norm=1e-3, learning_rate=1.0, lr_scheduler_type="constant", max_steps=1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = torch.stack([(p.detach() - before[name]).norm() for name, p in trainer.model.named_parameters()]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 6), (True, 4)])
def test_epochs_and_the_last_batch(build, drop_last, steps):
    trainer = build(
        max_steps=-1,
        num_train_epochs=2,
        per_device_train_batch_size=3,
        dataloader_drop_last=drop_last,
        logging_strategy="epoch",
    )
    trainer.train()
    assert trainer.state.global_step == steps
    assert [entry["epoch"] for entry in logged(trainer)] == [1.0, 2.0]


def test_evaluation_in_half_precision(build):
    trainer = build(bf16_full_eval=True)
    assert math.isfinite(trainer.evaluate()["eval_loss"])
    assert trainer.model.dtype == torch.bfloat16


def test_a_checkpoint_of_the_model_alone_is_nothing_to_go_on_from(build, tmp_path):
    build(save_strategy="steps", save_steps=1, save_only_model=True).train()
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-2" / "optimizer.pt").exists()
    with pytest.raises(CheckpointError, match="none of them complete"):
        build().train(resume_from_checkpoint=True)


def test_old_checkpoints_are_deleted(build, tmp_path):
    build(save_strategy="steps", save_steps=1, save_total_limit=1).train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


@pytest.mark.parametrize("setting", [{"every_n_layers": 2}, {"offload": True}])
def test_checkpointing_that_does_not_outlast_the_rollouts_is_refused(build, setting):
    with pytest.raises(ConfigError, match=f"has '{next(iter(setting))}', which TRL cannot set again"):
        build(activation_checkpointing=True, activation_checkpointing_kwargs=setting)


@pytest.mark.parametrize("name", ["fp16", "use_liger_kernel", "activation_offloading"])
def test_what_needs_an_accelerator_is_refused_on_a_cpu(build, name):
    with pytest.raises(ConfigError, match=f"`{name}=True` has no effect on a CPU"):
        build(**{name: True})
