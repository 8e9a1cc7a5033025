"""Arguments that reach the run although no other test needs them."""

import pytest
import torch

from tests.training.runs import parameters_of, shared_tokenizers


@pytest.mark.filterwarnings("ignore:`(eos|pad)_token` is deprecated:FutureWarning")
def test_tokens_named_in_the_arguments_are_those_of_the_run(make_trainer):
    # Read anew, since it is changed.
    own = {"processing_class": None}
    trainer = make_trainer(arguments=own, eos_token="<|endoftext|>", pad_token="<|im_start|>")
    tokenizer = trainer.processing_class
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_start|>")
    assert trainer.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id in trainer.aligner.student_stop_ids


def test_an_optimizer_of_the_callers_own_is_used(make_trainer, load, student_path):
    student = load(student_path)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    arguments = shared_tokenizers() | {"optimizers": (optimizer, None)}
    trainer = make_trainer(student=student, arguments=arguments, max_new_tokens=3)
    before = parameters_of(student)
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert all(parameter.equal(before[name]) for name, parameter in student.named_parameters())
