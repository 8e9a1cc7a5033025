"""The loss of TRL's `GOLDTrainer` for two tokenizers (`ULDLoss`), as one training step calls it.

Measured: the logits of both models at every position, as `GOLDTrainer.compute_loss` takes them from the models, the
loss with its alignment by byte offsets, and the backward down to the student's hidden states. Not measured: decoding
the completions and encoding them for the teacher. The text is that of a licence, as tokens of Llama 3 (student) and
Qwen 3 (teacher), cut to the same number on both sides. Every completion stands between a prompt of one token, of which
a real run has more, and the end of the turn, which the loss leaves out.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from .inputs import Sizes, SkippedCase, make_inputs


TEXT = Path(__file__).parents[2] / "LICENSE"
# Enough characters for so many tokens of English prose: both tokenizers take 4 to 5 of them on average.
SPARE_CHARACTERS, CHARACTERS_PER_TOKEN = 64, 8


class Completions(NamedTuple):
    """What `ULDLoss` reads of one side."""

    ids: Int[Tensor, "sequences tokens"]
    labels: Int[Tensor, "sequences tokens"]
    byte_offsets: Int[Tensor, "sequences tokens 2"]


def completions(tokenizer: Any, sequences: int, length: int) -> Completions:
    """Pieces of the text, each as a prompt of one token, `length` tokens and an end of turn."""
    with _no_warnings():
        from trl.experimental.utils import encode_with_byte_offsets

    # Runs of spaces would be single tokens.
    text, size = f"{' '.join(TEXT.read_text().split())} ", SPARE_CHARACTERS + CHARACTERS_PER_TOKEN * length
    text *= 2 + size // len(text)
    starts = [number * (len(text) - size) // sequences for number in range(sequences)]
    pieces = encode_with_byte_offsets(tokenizer.backend_tokenizer, [text[start : start + size] for start in starts])
    ids, offsets = [], []
    for piece_ids, piece_offsets in pieces:
        end = piece_offsets[length - 1][1]
        ids.append([tokenizer.eos_token_id, *piece_ids[:length], tokenizer.eos_token_id])
        offsets.append([(0, 0), *piece_offsets[:length], (end, end)])
    labels = torch.tensor(ids)
    labels[:, 0] = -100
    return Completions(torch.tensor(ids), labels, torch.tensor(offsets))


def gold(sizes: Sizes, *, hybrid: bool) -> Callable[[], None]:
    """GOLD's loss between the two distributions over all tokens, sorted, or `hybrid` with a JSD over shared tokens.

    Raises:
        SkippedCase: If the vocabularies are smaller than those of the tokenizers.
    """
    from tests import real_tokenizers

    tokenizers = real_tokenizers.llama3(), real_tokenizers.qwen3()
    if sizes.student_vocab < len(tokenizers[0]) or sizes.teacher_vocab < len(tokenizers[1]):
        raise SkippedCase(
            f"it reads real tokens, which need {len(tokenizers[0])} and {len(tokenizers[1])} rows of the heads"
        )
    length = sizes.tokens // sizes.sequences
    sides = [completions(tokenizer, sizes.sequences, length) for tokenizer in tokenizers]
    student, teacher = (Completions(*(part.to(sizes.device) for part in side)) for side in sides)
    loss_function = _uld_loss(sizes, *tokenizers, hybrid=hybrid)
    inputs = make_inputs(replace(sizes, tokens=student.ids.numel()))
    states = inputs.student.requires_grad_()

    def run() -> None:
        states.grad = None
        student_logits = (states @ inputs.student_head.T).view(*student.ids.shape, -1)
        with torch.no_grad():
            teacher_logits = (inputs.teacher @ inputs.teacher_head.T).view(*teacher.ids.shape, -1)
        loss = loss_function(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            student_labels=student.labels,
            teacher_labels=teacher.labels,
            student_input_ids=student.ids,
            teacher_input_ids=teacher.ids,
            student_byte_offsets=student.byte_offsets,
            teacher_byte_offsets=teacher.byte_offsets,
        )
        loss.backward()

    return run


def _uld_loss(sizes: Sizes, student_tokenizer: Any, teacher_tokenizer: Any, *, hybrid: bool) -> Callable[..., Tensor]:
    with _no_warnings():
        from trl.experimental.gold import GOLDConfig
        from trl.experimental.gold.gold_trainer import ULDLoss

        config = GOLDConfig(
            "unused",
            report_to="none",
            bf16=False,
            use_cpu=sizes.device == "cpu",
            use_uld_loss=True,
            uld_use_hybrid_loss=hybrid,
            beta=sizes.beta,
        )
    return ULDLoss(config, student_tokenizer, teacher_tokenizer, device=sizes.device)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Leave out that TRL's experimental code may change, and that TRL sets an argument that will go away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
