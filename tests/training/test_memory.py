"""No step of training makes the logits of all its tokens, of the student or of the teacher."""

import pytest

from tests.objectives.plain import TensorSizes, plain_logps
from tests.training.fixed_rollouts import FixedTrainer, lora, loss_and_gradients, rollouts
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok.objectives import LMHead
from trl_xtok.training import objective as objective_module
from trl_xtok.training import teachers as teachers_module


@pytest.fixture
def build(tmp_path, padded_student_path):
    def build_trainer(teacher, **changes):
        trainer = tiny_trainer(
            padded_student_path,
            teacher,
            tiny_args(tmp_path, block_size=8, **changes),
            trainer_class=FixedTrainer,
            # The gradient of a head that trains is as large as the head.
            peft_config=lora(),
        )
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


def logits_and_peak(trainer):
    """How many logits either side's tokens have at least, and how many numbers a step had in memory."""
    with TensorSizes() as sizes:
        loss_and_gradients(trainer, PROMPTS, len(PROMPTS))
    completions = [trainer.aligner.align(ids) for ids in trainer.rollouts.values()]
    student = sum(len(alignment.student_chunks) for alignment in completions)
    teacher = sum(len(alignment.teacher_ids) for alignment in completions)
    rows = [
        len(model.get_output_embeddings().weight) for model in (trainer.model.get_base_model(), trainer.teacher.model)
    ]
    return min(student * rows[0], teacher * rows[1]), sizes.peak


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "chunk_rkl"},
        {"objective": "chunk_rkl", "segmentation": "text"},
        {"objective": "chunk_rkl", "advantage_baseline": "mean"},
        {"objective": "chunk_rkl", "advantage_baseline": "position"},
        {"objective": "chunk_rkl", "max_lookahead": 0.1},
        {"objective": "chunk_jsd"},
        {"objective": "hybrid"},
        {"objective": "prefix_jsd"},
    ],
    ids=lambda changes: ", ".join(map(str, changes.values())),
)
def test_two_vocabularies(build, teacher_path, changes):
    logits, peak = logits_and_peak(build(teacher_path, **changes))
    assert peak < logits / 2


def test_one_vocabulary(build, same_tokenizer_teacher_path):
    trainer = build(same_tokenizer_teacher_path)
    assert trainer.objective.name == "exact_jsd"
    logits, peak = logits_and_peak(trainer)
    assert peak < logits / 2


@pytest.mark.parametrize("module", [objective_module, teachers_module], ids=["student", "teacher"])
def test_logits_would_be_seen(build, teacher_path, monkeypatch, module):
    """The same with the plain formula in place of the one in blocks."""

    def plain(hidden, head, targets, *, temperature, **options):
        return plain_logps(hidden, head if isinstance(head, LMHead) else LMHead(head), targets, temperature)

    monkeypatch.setattr(module, "token_logps", plain)
    logits, peak = logits_and_peak(build(teacher_path, objective="chunk_rkl"))
    assert peak >= logits
