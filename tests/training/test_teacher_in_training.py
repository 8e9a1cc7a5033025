"""What becomes of the teacher while a run goes on."""

from typing import Any

import pytest
from safetensors.torch import load_file

from tests.training.runs import shared_tokenizers
from trl_xtok.training.objective import Objective


@pytest.mark.parametrize("objective", ["chunk_rkl", "prefix_jsd"])
def test_a_teacher_is_frozen_and_never_in_training_mode(make_trainer, load, teacher_path, tmp_path, objective):
    teacher = load(teacher_path).train()
    modes: list[bool] = []
    teacher.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer = make_trainer(
        teacher=teacher,
        arguments=shared_tokenizers(),
        objective=objective,
        max_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    assert modes
    assert not any(modes)
    assert not [name for name, parameter in teacher.named_parameters() if parameter.requires_grad]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    in_optimizer = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not in_optimizer & {id(parameter) for parameter in teacher.parameters()}

    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in saved.items()} == {
        name: tensor.shape for name, tensor in trainer.model.state_dict().items()
    }


def test_hidden_states_of_the_teacher_are_let_go_with_their_micro_batch(make_trainer, monkeypatch):
    scored, held, score = [], [], Objective.score

    def noting(objective, batch, teachers):
        score(objective, batch, teachers)
        scored.append(batch)
        held.append(sum(each.starts is not None for each in scored))

    monkeypatch.setattr(Objective, "score", noting)
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    make_trainer(arguments=shared_tokenizers(), objective="prefix_jsd", **settings).train()
    assert held == [1, 1, 1, 1]


# Offloading between scorings. Without a second device the moves can be seen, but not what they save.


@pytest.fixture
def events(make_trainer):
    """What happens in one optimizer step of two micro-batches: moves of the teacher, and who computes."""

    def run(**changes: Any) -> list[str]:
        trainer = make_trainer(arguments=shared_tokenizers(), gradient_accumulation_steps=2, **changes)
        # Refused in the arguments of a run on a CPU.
        trainer.args.offload_teacher = True
        seen: list[str] = []
        device = trainer.args.device
        trainer.teacher.model.to = lambda place: seen.append("there" if place is device else f"to {place}")
        for name, model in (("teacher", trainer.teacher.model), ("student", trainer.model)):
            model.model.register_forward_pre_hook(lambda *_, name=name: seen.append(name))
        trainer.train()
        return [event for event, following in zip(seen, [*seen[1:], None], strict=True) if event != following]

    return run


def test_an_offloaded_teacher_is_moved_once_per_optimizer_step(events):
    step = ["student", "there", "teacher", "to cpu"]
    assert events() == [*step, "student"]
    assert events(max_steps=2) == [*step, *step, "student"]


def test_an_offloaded_teacher_is_on_the_device_when_it_writes(events):
    visit = ["there", "teacher", "to cpu"]
    assert events(lmbda=0.0, seq_kd=True, objective="chunk_jsd") == [*visit, *visit, "student"]
