"""The student as a server can read it: an ordinary model in a folder, whatever it is trained as."""

import copy
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import ModelError


@contextmanager
def saved_for_server(student: nn.Module, folder: Path) -> Iterator[Path]:
    """A folder of its own in `folder` with the student as an ordinary model, for as long as it is read."""
    # Other runs may use `folder`, too.
    target = folder / f"trl_xtok_student_{uuid.uuid4().hex}"
    try:
        with _without_progress():
            on_its_own(student).save_pretrained(target)
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


@contextmanager
def _without_progress() -> Iterator[None]:
    """One bar in each step would hide all else that is printed."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def on_its_own(student: nn.Module) -> PreTrainedModel:
    """A copy of the student in main memory: with its adapter merged, and with an output head of its own.

    The student's own weights are only read. vLLM keeps the old head of a model with tied embeddings when it reads new
    weights, unless it finds the head among them.
    """
    tensors = [*student.parameters(), *student.buffers()]
    # Whatever `deepcopy` finds here it takes for the copy.
    memo = {
        id(tensor): nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
        for tensor in tensors
        for data in (tensor.detach().to("cpu", copy=True),)
    }
    plain = copy.deepcopy(student, memo)
    if isinstance(plain, PeftModel):
        plain = plain.merge_and_unload()
    head = plain.get_output_embeddings()
    if head.weight is plain.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    for config in (plain.config, plain.config.get_text_config()):
        config.tie_word_embeddings = False
    return plain


def refuse_quantized(student: PreTrainedModel) -> None:
    """Refuse a student whose weights a server could not read.

    Raises:
        ModelError: If it is quantized.
    """
    dtypes = {str(parameter.dtype) for parameter in student.parameters() if not parameter.is_floating_point()}
    if dtypes:
        raise ModelError(
            f"The student ({type(student).__name__}) is quantized: some of its weights are in "
            f"{', '.join(sorted(dtypes))}, which a vLLM server cannot read as new weights. Load it without "
            "quantization, or leave `use_vllm` out."
        )
