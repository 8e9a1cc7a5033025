"""Datasets of plain text, in which nothing says where a prompt ends."""

import pytest
import torch
from datasets import Dataset

from tests import real_tokenizers
from tests.training.fixed_rollouts import stop, text
from tests.training.runs import logged, shared_tokenizers
from tests.training.tiny_models import PROMPTS, prompt_dataset
from trl_xtok.errors import DataError
from trl_xtok.training.data import PromptCollator
from trl_xtok.training.dataset_formats import read_prompt


TEXTS = [f"{prompt} and so on." for prompt in PROMPTS]


def collator(student="smollm2", teacher="mistral1", **changes) -> PromptCollator:
    tokenizers = getattr(real_tokenizers, student)(), getattr(real_tokenizers, teacher)()
    return PromptCollator(*tokenizers, with_completions=True, text_field="text", **changes)


@pytest.mark.parametrize("content", [*TEXTS, "\U0001f469\u200d\U0001f33e farms", "  two spaces", "\nline"])
@pytest.mark.parametrize("names", [("smollm2", "mistral1"), ("mistral1", "llama3"), ("gemma3", "qwen3")])
def test_all_but_the_first_token_is_the_completion(names, content):
    sides = collator(*names)
    row = sides.split_text({"text": content, "label": 1})
    student = sides.student_tokenizer
    ids, teacher_ids = sides.tokenize_row(row)
    completion = sides.completion(row, ids)
    whole = student.encode(content, add_special_tokens=False)
    begun = ids[1:] if ids[0] == student.bos_token_id else ids
    assert completion[-1] == student.eos_token_id
    assert begun + completion[:-1] == whole
    teacher = sides.teacher_tokenizer
    theirs = teacher.decode(teacher_ids, skip_special_tokens=True)
    assert theirs
    assert content.strip().startswith(theirs.strip())


def test_the_first_token_may_be_a_part_of_a_character():
    row = collator().split_text({"text": "\U0001f469 farms"})
    assert len(text("\U0001f469")) > 1
    assert row == {"text": "\U0001f469 farms", "prompt": "\U0001f469", "completion": " farms"}


def test_a_long_text_is_cut_where_the_context_ends():
    batch = collator(student_context=10)([{"text": "one " * 50}])
    assert batch["prompts"].shape[1] + batch["completions"].shape[1] == 10
    assert batch["completions"][0].tolist() == text("one " * 50)[1:10]


def test_columns_that_say_more_come_first():
    row = {"text": "Hi there", "prompt": "Hi", "completion": " you"}
    assert collator().split_text(row) is row
    assert PromptCollator(real_tokenizers.smollm2(), real_tokenizers.mistral1()).split_text({"text": "Hi there"}) == {
        "text": "Hi there"
    }


@pytest.mark.parametrize("content", ["", "Hi", None, 5])
def test_a_text_without_a_second_token_is_refused(content):
    with pytest.raises(DataError, match=rf"`text` is {content!r}, which must be text of two tokens or more"):
        collator()([{"text": content}])


@pytest.mark.parametrize("changes", [{}, {"lmbda": 0.5}, {"lmbda": 0.0, "seq_kd": True}])
def test_where_somebody_is_to_answer_it_is_refused(make_trainer, changes):
    arguments = shared_tokenizers() | {"train_dataset": Dataset.from_dict({"text": TEXTS})}
    with pytest.raises(DataError, match=r"columns text, and none holds a prompt.*`dataset_text_field`.*`lmbda=0.0`"):
        make_trainer(objective="chunk_jsd", arguments=arguments, **changes)


def test_evaluation_needs_prompts(make_trainer):
    data = Dataset.from_dict({"text": TEXTS})
    with pytest.raises(DataError, match="evaluated on with `eval_on_dataset=True`"):
        make_trainer(
            objective="chunk_jsd",
            lmbda=0.0,
            arguments=shared_tokenizers() | {"train_dataset": data, "eval_dataset": data},
        )
    with pytest.raises(DataError, match="none holds a prompt"):
        read_prompt({"text": "Hi"})


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_on_text(make_trainer, streamed):
    rows = Dataset.from_dict({"content": TEXTS})
    trainer = make_trainer(
        objective="chunk_rkl",
        crossentropy_weight=1.0,
        lmbda=0.0,
        dataset_text_field="content",
        train_sampling_strategy="sequential",
        max_grad_norm=0,
        arguments=shared_tokenizers()
        | {
            "train_dataset": rows.to_iterable_dataset() if streamed else rows,
            "eval_dataset": prompt_dataset(),
        },
    )
    with torch.no_grad():
        logps = []
        for content in TEXTS[:2]:
            ids = torch.tensor([text(content) + stop()])
            logps.append(trainer.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]))
    trainer.train()
    (log,) = logged(trainer)
    torch.testing.assert_close(log["loss"], -torch.cat(logps).mean().item(), atol=1e-4, rtol=1e-4)
    assert trainer.evaluate()["eval_loss"] > float("-inf")
