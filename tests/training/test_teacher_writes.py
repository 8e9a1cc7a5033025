"""Completions that the teacher writes (`seq_kd`), in the student's tokens."""

import pytest
import torch
from datasets import Dataset

from tests import real_tokenizers
from tests.conversion import printable_bytes
from tests.training.fixed_rollouts import stop, text
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok.training.off_policy import TeacherWriter


@pytest.fixture
def build(tmp_path, padded_student_path, teacher_path):
    def build_trainer(**changes):
        args = tiny_args(tmp_path, lmbda=0.0, seq_kd=True, objective="chunk_jsd", **{"max_new_tokens": 40} | changes)
        prompts = Dataset.from_dict({"prompt": PROMPTS})
        return tiny_trainer(padded_student_path, teacher_path, args, train_dataset=prompts)

    return build_trainer


def test_the_teacher_writes(build):
    """Its text, spelled in the student's own tokens, ends with the student's stop token where the teacher stopped."""
    trainer = build(max_new_tokens=30)
    batch = trainer.data_collator([{"prompt": prompt} for prompt in PROMPTS])
    assert "completions" not in batch
    torch.manual_seed(3)
    written = trainer._written([batch])
    assert len(written) == len(PROMPTS)
    assert all(0 < len(ids) <= 30 for ids in written)
    writer, teacher = trainer._written, real_tokenizers.mistral1()
    content = " 4, that is 你好 4."
    ids = teacher.encode(content, add_special_tokens=False)
    assert (
        trainer.processing_class.decode(writer._for_student([*ids, teacher.eos_token_id])[:-1]).strip()
        == content.strip()
    )
    assert writer._for_student([*ids, teacher.eos_token_id])[-1:] == stop()
    assert writer._for_student(ids)[-1:] != stop()
    trainer.train()
    assert "off_policy/xtok/coverage" in next(log for log in trainer.state.log_history if "loss" in log)


def test_what_the_teacher_wrote_ends_at_its_own_stop_and_control_tokens(build):
    trainer = build()
    teacher, model = real_tokenizers.mistral1(), trainer.teacher.model
    one, two = (teacher.encode(word, add_special_tokens=False) for word in ("one", "two"))
    assert trainer._written._for_student([*one, teacher.bos_token_id, *two]) == text(" one")
    model.generation_config.eos_token_id = [teacher.eos_token_id, two[-1]]
    writer = TeacherWriter(trainer.teacher, trainer.data_collator, trainer.args)
    assert writer._for_student([*one, two[-1]]) == text(" one") + stop()


def test_a_space_of_the_teachers_template_is_not_taught(build):
    """Mistral's template writes one before each answer, and its models write it too; after plain text it is text."""
    trainer = build()
    writer, teacher = trainer._written, real_tokenizers.mistral1()
    _, asked = trainer.data_collator.tokenize([{"role": "user", "content": "Hi"}])
    _, begun = trainer.data_collator.tokenize("The capital of France is")
    ids = teacher.encode("Paris is it.", add_special_tokens=False)
    assert teacher.convert_ids_to_tokens(ids[0]) == "\u2581Paris"
    assert writer._for_student(writer._without_space(asked, ids)) == text("Paris is it.")
    assert writer._for_student(writer._without_space(begun, ids)) == text(" Paris is it.")
    assert writer._without_space(asked, []) == []


def test_what_the_teacher_wrote_ends_where_the_student_cannot_spell_it(build):
    writer, teacher = build()._written, real_tokenizers.mistral1()
    one, two = (teacher.encode(word, add_special_tokens=False) for word in ("one", "two"))
    no_byte = teacher.convert_tokens_to_ids("<0xF5>")
    assert printable_bytes()[0xF5] not in real_tokenizers.smollm2().get_vocab()
    assert writer._for_student([*one, no_byte, *two, teacher.eos_token_id]) == text(" one")
    assert writer._for_student([no_byte, *two]) == []
    assert writer._for_student([len(teacher) + 7, *two]) == []
