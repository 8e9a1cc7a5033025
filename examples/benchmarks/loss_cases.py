"""What `loss.py` measures: each case is one loss, forward and backward, on random final hidden states.

Both heads are frozen unless a case says otherwise. All cases of one size have the same hidden states and heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trl_xtok.objectives import (
    EventMap,
    LMHead,
    chunk_advantages,
    chunk_rkl,
    sum_by_chunk,
    token_logps,
    vocab_jsd,
)

from .gold_loss import gold
from .inputs import Sizes, make_inputs, random_ids


# Of Llama 3's vocabulary, 85 % are also in Qwen 3's; there are as many classes of tokens as shared tokens.
SHARED = 0.85
PRODUCT_ROWS = 64

PRODUCTS = "products"
PRODUCTS_TRAINABLE = "products, trainable head"
PRODUCTS_ONE_VOCABULARY = "products, one vocabulary"
GOLD = "TRL GOLD"

Run = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table.

    Attributes:
        prepare: Makes the inputs; what it returns is measured.
        products: The case that does no more than this one's matrix products.
        one_vocabulary: Whether both heads have the student's vocabulary.
        real_tokens: Whether it needs real tokenizers, and so their vocabularies.
    """

    prepare: Callable[[Sizes], Run]
    products: str = PRODUCTS
    one_vocabulary: bool = False
    real_tokens: bool = False


def products(sizes: Sizes, *, trainable: bool) -> Run:
    """The matrix products alone, 64 rows at a time: logits of both sides, gradient of the student's hidden states.

    With a trainable head, also its gradient, for which the student's logits are computed once more.
    """
    student, head, teacher, teacher_head = make_inputs(sizes)

    @torch.no_grad()
    def run() -> None:
        gradient = torch.empty_like(student)
        head_gradient = torch.zeros_like(head) if trainable else None
        logits = student.new_empty(PRODUCT_ROWS, len(head))
        teacher_logits = student.new_empty(PRODUCT_ROWS, len(teacher_head))
        for start in range(0, len(student), PRODUCT_ROWS):
            rows = slice(start, min(start + PRODUCT_ROWS, len(student)))
            out = logits[: rows.stop - start]
            torch.mm(student[rows], head.T, out=out)
            torch.mm(out, head, out=gradient[rows])
            if head_gradient is not None:
                torch.mm(student[rows], head.T, out=out)
                head_gradient.addmm_(out.T, student[rows])
            torch.mm(teacher[rows], teacher_head.T, out=teacher_logits[: rows.stop - start])

    return run


def reverse_kl(sizes: Sizes, *, trainable: bool) -> Run:
    """`chunk_rkl` with proportional credit: log-probs of both sides, chunks of two tokens, advantages, loss."""
    inputs = make_inputs(sizes)
    student, head = inputs.student.requires_grad_(), inputs.student_head.requires_grad_(trainable)
    ids = random_ids(sizes, sizes.student_vocab)
    teacher_ids = random_ids(sizes, sizes.teacher_vocab)
    chunks = torch.arange(sizes.tokens, device=sizes.device) // 2
    num_chunks = (sizes.tokens + 1) // 2

    def run() -> None:
        student.grad = head.grad = None
        logps = token_logps(student, head, ids)
        with torch.no_grad():
            teacher_logps = token_logps(inputs.teacher, inputs.teacher_head, teacher_ids)
        chunk_logps = sum_by_chunk(teacher_logps, chunks, num_chunks)
        advantages = chunk_advantages(logps, chunk_logps, chunks, "proportional")
        chunk_rkl(logps, advantages).sum().backward()

    return run


def jsd(sizes: Sizes, *, events: Callable[[Sizes], tuple[EventMap, EventMap]]) -> Run:
    """`vocab_jsd` at every position.

    In training `prefix_jsd` compares fewer positions, where chunks begin, and adds `chunk_rkl` at all of them.
    """
    inputs = make_inputs(sizes)
    student = inputs.student.requires_grad_()
    student_events, teacher_events = events(sizes)

    def run() -> None:
        student.grad = None
        compared = vocab_jsd(
            student,
            LMHead(inputs.student_head),
            inputs.teacher,
            LMHead(inputs.teacher_head),
            student_events=student_events,
            teacher_events=teacher_events,
            beta=sizes.beta,
        )
        compared.divergences.sum().backward()

    return run


def all_tokens(sizes: Sizes) -> tuple[EventMap, EventMap]:
    """Every token is an event: one vocabulary."""
    return EventMap(), EventMap()


def shared_tokens(sizes: Sizes) -> tuple[EventMap, EventMap]:
    """The tokens that both have, at random places."""
    ours, theirs = _shared_columns(sizes)
    return EventMap(ours), EventMap(theirs)


def classes(sizes: Sizes) -> tuple[EventMap, EventMap]:
    """As many classes as shared tokens; each other token of either side is in a random one."""
    columns, sizes_of_sides = _shared_columns(sizes), (sizes.student_vocab, sizes.teacher_vocab)
    ours, theirs = (_class_map(*side, seed) for seed, side in enumerate(zip(sizes_of_sides, columns, strict=True)))
    return ours, theirs


def _shared_columns(sizes: Sizes) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_shared = int(SHARED * min(sizes.student_vocab, sizes.teacher_vocab))
    ours, theirs = (
        torch.randperm(size, generator=generator)[:num_shared] for size in (sizes.student_vocab, sizes.teacher_vocab)
    )
    return ours.sort().values.to(sizes.device), theirs.to(sizes.device)


def _class_map(vocab_size: int, shared: Tensor, seed: int) -> EventMap:
    generator = torch.Generator().manual_seed(seed)
    events = torch.randint(len(shared), (vocab_size,), generator=generator).to(shared.device)
    events[shared] = torch.arange(len(shared), device=shared.device)
    columns = events.argsort(stable=True)
    return EventMap(columns, events[columns], len(shared))


def distillation_trainer(sizes: Sizes) -> Run:
    """The loss of TRL's `DistillationTrainer` (one vocabulary, no logits kept); it also computes the entropy."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    inputs = make_inputs(sizes)
    student = inputs.student.requires_grad_()
    mask = torch.ones(1, sizes.tokens, device=sizes.device)

    def run() -> None:
        student.grad = None
        loss, _, _ = _chunked_divergence_loss(
            student[None],
            inputs.teacher[None],
            inputs.student_head,
            inputs.teacher_head,
            mask,
            sizes.beta,
            num_items_in_batch=1,
        )
        loss.backward()

    return run


CASES = {
    PRODUCTS: Case(partial(products, trainable=False)),
    PRODUCTS_TRAINABLE: Case(partial(products, trainable=True), PRODUCTS_TRAINABLE),
    PRODUCTS_ONE_VOCABULARY: Case(partial(products, trainable=False), PRODUCTS_ONE_VOCABULARY, one_vocabulary=True),
    "chunk_rkl": Case(partial(reverse_kl, trainable=False)),
    "chunk_rkl, trainable head": Case(partial(reverse_kl, trainable=True), PRODUCTS_TRAINABLE),
    "shared_vocab_jsd": Case(partial(jsd, events=shared_tokens)),
    "prefix_jsd": Case(partial(jsd, events=classes)),
    "exact_jsd": Case(partial(jsd, events=all_tokens), PRODUCTS_ONE_VOCABULARY, one_vocabulary=True),
    "TRL DistillationTrainer": Case(distillation_trainer, PRODUCTS_ONE_VOCABULARY, one_vocabulary=True),
    GOLD: Case(partial(gold, hybrid=False), real_tokens=True),
    "TRL GOLD, hybrid": Case(partial(gold, hybrid=True), real_tokens=True),
}
