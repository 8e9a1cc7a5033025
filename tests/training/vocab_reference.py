"""Objectives that compare next-token distributions, by the book: whole logits, one chunk at a time, float64."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.training.reference import Reference, charge_applies, chunk_advantages
from trl_xtok.training.config_checks import ObjectiveName


def _events(reference: Reference, objective: str, rows: tuple[int, int]) -> list[dict[int, int]]:
    """Token -> event, for both sides; events that one side lacks are left out."""
    if objective == "exact_jsd":
        sides = [{i: i for i in range(min(rows))} for _ in rows]
    elif objective == "prefix_jsd":
        classes = reference.aligner.prefix_classes()
        sides = [dict(enumerate(side)) for side in (classes.student_classes, classes.teacher_classes)]
    else:
        shared = reference.aligner.shared_tokens()
        sides = [dict(zip(shared.student_ids, shared.teacher_ids, strict=True)), {i: i for i in shared.teacher_ids}]
    sides = [{token: event for token, event in side.items() if token < size and event >= 0}
             for side, size in zip(sides, rows, strict=True)]  # fmt: skip
    both = set(sides[0].values()) & set(sides[1].values())
    number = {event: place for place, event in enumerate(sorted(both))}
    return [{token: number[event] for token, event in side.items() if event in both} for side in sides]


def _distributions(
    model, prompt_ids: list[int], ids: list[int], events: Mapping[int, int], temperature: float
) -> Tensor:
    """Probabilities of the events where each token of a completion is predicted."""
    logits = model(input_ids=torch.tensor([[*prompt_ids, *ids]]), use_cache=False).logits[0].double()
    logits = logits[len(prompt_ids) - 1 : len(prompt_ids) - 1 + len(ids)] / temperature
    tokens, numbers = torch.tensor(list(events)), torch.tensor(list(events.values()))
    probabilities = logits[:, tokens].softmax(-1)
    return torch.zeros(len(ids), int(numbers.max()) + 1, dtype=torch.float64).index_add(1, numbers, probabilities)


def _divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    mixture = beta * teacher + (1 - beta) * student
    if beta == 0:
        return (teacher * (teacher / student).log()).sum()
    if beta == 1:
        return (student * (student / teacher).log()).sum()
    return (
        beta * (teacher * (teacher / mixture).log()).sum() + (1 - beta) * (student * (student / mixture).log()).sum()
    )


class VocabReference:
    """The loss of one optimizer step for fixed rollouts under an objective that compares distributions."""

    def __init__(self, reference: Reference, objective: ObjectiveName):
        self._reference, self._objective = reference, objective
        rows = [model.get_output_embeddings().weight.shape[0] for model in (reference.student, reference.teacher)]
        self._sides = _events(reference, objective, (rows[0], rows[1]))

    def loss(self, rollouts: dict[str, list[int]]) -> Tensor:
        """Divergences and credited log-probs over the number of trained tokens, with gradient."""
        args = self._reference.args
        divergences, credits, charged, count = [], [], [], 0
        for prompt, ids in rollouts.items():
            alignment, chunks = self._reference.aligner.align(ids), self._reference._trained_chunks(ids)
            student, teacher = self._both(prompt, ids, alignment.teacher_ids)
            for chunk in sorted(set(chunks) - {-1}):
                ours = [i for i, other in enumerate(chunks) if other == chunk]
                theirs = [j for j, other in enumerate(alignment.teacher_chunks) if other == chunk]
                compared, credited = self._chunk(ids, alignment.teacher_ids, ours, theirs, student, teacher)
                divergences += compared
                credits += credited
                dropped = self._objective == "shared_vocab_jsd" and len(ours) + len(theirs) > 2
                count += 0 if dropped else len(ours)
            logps = student[0]
            charged += [
                logps[i] for i, why in enumerate(alignment.drop_reasons) if why in ("invalid_utf8", "unknown_id")
            ]
        if self._objective in ("exact_jsd", "shared_vocab_jsd") or not charge_applies(args.dropped_advantage):
            charged = []
        mean = sum(a for a, _ in credits) / max(len(credits), 1)
        charge = min(0.0, mean) if args.dropped_advantage == "mean" else args.dropped_advantage
        baseline = mean if args.advantage_baseline == "mean" else 0.0
        policy = [-(a - baseline) * logp for a, logp in credits] + [-(charge - baseline) * logp for logp in charged]
        total = sum(divergences) + args.chunk_weight * sum(policy)
        return total / (count + len(charged))

    def _both(self, prompt: str, ids: list[int], teacher_ids: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Log-probs of the tokens and event probabilities, for both sides."""
        reference, found = self._reference, []
        prompts = reference.tokenize(prompt)
        models = reference.student, reference.teacher
        for model, prompt_ids, tokens, events in zip(models, prompts, (ids, teacher_ids), self._sides, strict=True):
            with torch.set_grad_enabled(model is reference.student):
                everything = {token: token for token in range(model.get_output_embeddings().weight.shape[0])}
                whole = _distributions(model, prompt_ids, tokens, everything, reference.args.temperature)
                logps = whole.log().gather(1, torch.tensor(tokens, dtype=torch.long)[:, None])[:, 0]
                found.append((logps, _distributions(model, prompt_ids, tokens, events, reference.args.temperature)))
        return found

    def _chunk(
        self, ids, teacher_ids, ours, theirs, student, teacher
    ) -> tuple[list[Tensor], list[tuple[float, Tensor]]]:
        """Divergences, and advantage and log-prob of each credited token."""
        args, objective = self._reference.args, self._objective
        (logps, own), (teacher_logps, other) = student, teacher
        one_to_one = len(ours) == len(theirs) == 1
        compared = []
        if objective in ("exact_jsd", "prefix_jsd") or one_to_one:
            compared = [_divergence(own[ours[0]], other[theirs[0]], args.beta)]
        if objective in ("exact_jsd", "shared_vocab_jsd"):
            return compared, []
        firsts = ids[ours[0]], teacher_ids[theirs[0]]
        events = [side.get(token) for side, token in zip(self._sides, firsts, strict=True)]
        one_event = events[0] is not None and events[0] == events[1]
        if one_to_one and one_event and objective != "chunk_rkl":
            return compared, []
        teacher_logp, baseline = float(sum(teacher_logps[j] for j in theirs)), 0.0
        if objective == "chunk_rkl":
            compared = []
            baseline = -float(_divergence(own[ours[0]].detach(), other[theirs[0]], beta=1.0))
        if objective == "prefix_jsd" and one_event:
            teacher_logp -= float(other[theirs[0]][events[0]].log() - own[ours[0]][events[0]].detach().log())
        split = chunk_advantages(logps[ours].tolist(), teacher_logp, args.credit)
        split[0] -= baseline
        if (clip := args.advantage_clip) is not None:
            split = [max(-clip, min(clip, a)) for a in split]
        return compared, list(zip(split, [logps[i] for i in ours], strict=True))
