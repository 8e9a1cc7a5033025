"""The objective by the book: full logits, one completion at a time without padding, float64, Python lists.

Slow and plain on purpose. It shares nothing with the package but the aligner, which has tests of its own.
"""

import copy
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from trl_xtok import CrossTokenizerGKDTrainer


def exact_copy(model: nn.Module) -> nn.Module:
    """The model in float64, computing its logits as its class does."""
    clone = copy.deepcopy(model).double().eval()
    clone.zero_grad()
    for module in clone.modules():
        # TRL puts a forward of its own on the student, which belongs to the original also in a copy.
        module.__dict__.pop("forward", None)
    return clone


def token_logps(model, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Log-prob of each token of one completion, from the model's own logits."""
    if not completion_ids:
        return torch.zeros(0, dtype=torch.float64)
    ids = torch.tensor([[*prompt_ids, *completion_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
    predicting = logits.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return torch.stack([row[token] for row, token in zip(predicting, completion_ids, strict=True)])


def chunk_advantages(logps: list[float], teacher_logp: float, credit: str) -> list[float]:
    """The formulas of design section 6 on one chunk."""
    student_logp, size = sum(logps), len(logps)
    match credit:
        case "proportional":
            return [(teacher_logp / student_logp - 1) * p for p in logps]
        case "additive":
            return [(teacher_logp - student_logp) / size] * size
        case "uniform":
            return [teacher_logp / size - p for p in logps]
        case "chunk":
            return [teacher_logp - student_logp] * size
    raise ValueError(credit)


def unit_corrections(logps: list[float], canonical_logp: float, credit: str) -> list[float]:
    """What each token of a unit loses where the sampled path is not the canonical one."""
    student_logp, size = sum(logps), len(logps)
    both = torch.tensor([student_logp, canonical_logp], dtype=torch.float64).logsumexp(0).item()
    delta = both - student_logp
    match credit:
        case "proportional":
            return [delta * p / student_logp for p in logps]
        case "additive" | "uniform":
            return [delta / size] * size
        case "chunk":
            return [delta] * size
    raise ValueError(credit)


def find_units(chunks: Sequence[int], regions: Sequence[int]) -> list[list[int]]:
    """Tokens that hang together through shared chunks or regions, as lists of positions."""
    units = [{index} for index in range(len(chunks))]
    for numbers in (chunks, regions):
        for number in set(numbers) - {-1}:
            members = {index for index, other in enumerate(numbers) if other == number}
            touched = [unit for unit in units if unit & members]
            units = [unit for unit in units if not unit & members] + [set().union(*touched)]
    return sorted(sorted(unit) for unit in units)


class Reference:
    """The loss of one optimizer step for fixed rollouts; see `loss`."""

    def __init__(self, trainer: CrossTokenizerGKDTrainer):
        self.aligner = trainer.aligner
        self.args = trainer.args
        self.decode = trainer.processing_class.decode
        self.tokenize = trainer.data_collator.tokenize
        self.student = exact_copy(trainer.model)
        self.teacher = exact_copy(trainer.teacher_model)

    def gradients(self) -> dict[str, Tensor]:
        """Gradients of the student's parameters by name."""
        return {name: p.grad for name, p in self.student.named_parameters() if p.grad is not None}

    def loss(self, rollouts: dict[str, list[int]]) -> Tensor:
        """Minus the mean of advantage times log-prob over all tokens that are trained on, with gradient.

        Args:
            rollouts: The completion of each plain-text prompt.
        """
        rows = [self._row(*self.tokenize(prompt), completion) for prompt, completion in rollouts.items()]
        leaving = [self.leaves_canonical(completion) for completion in rollouts.values()]
        scored = [a for _, advantages, _ in rows for a in advantages if a is not None]
        mean = sum(scored) / max(len(scored), 1)
        charge = self.args.dropped_advantage
        if charge == "mean":
            charge = min(0.0, mean)
        baseline = mean if self.args.advantage_baseline == "mean" else 0.0
        total, count = torch.zeros((), dtype=torch.float64), 0
        for (logps, advantages, charged), leaves in zip(rows, leaving, strict=True):
            for logp, advantage, pays, guarded in zip(logps, advantages, charged, leaves, strict=True):
                if pays and charge_applies(self.args.dropped_advantage):
                    advantage = charge
                if advantage is not None:
                    guards = guarded and self.args.canonical_guard is not None
                    advantage = -self.args.canonical_guard if guards else advantage - baseline
                    total, count = total - advantage * logp, count + 1
        return total / max(count, 1)

    def leaves_canonical(self, ids: list[int]) -> list[bool]:
        """Whether a token is not in the student's own tokenization of the text, and the one before it is."""
        canonical = self.aligner.canonical(ids).teacher_ids
        paths = []
        for path in (ids, canonical):
            ends = [*accumulate(self.aligner.align(path).student_bytes)]
            paths.append(list(zip([0, *ends], ends, path, strict=False)))
        own = [place not in paths[1] for place in paths[0]]
        return [differs and not before for differs, before in zip(own, [False, *own], strict=False)]

    def plain_logps(self, rollouts: dict[str, list[int]]) -> tuple[Tensor, Tensor]:
        """Log-probs of all sampled ids under the student and, as if it had its tokenizer, under the teacher.

        An id that the teacher has no row for gets NaN.
        """
        known = self.teacher.get_input_embeddings().num_embeddings
        student, teacher = [], []
        for prompt, ids in rollouts.items():
            student_prompt, teacher_prompt = self.tokenize(prompt)
            student.append(token_logps(self.student, student_prompt, ids, self.args.temperature))
            with torch.no_grad():
                kept = [token for token in ids if token < known]
                row = iter(token_logps(self.teacher, teacher_prompt, kept, self.args.temperature))
            teacher += [next(row) if token < known else torch.tensor(torch.nan).double() for token in ids]
        return torch.cat(student), torch.stack(teacher)

    def _row(
        self, prompt_ids: list[int], teacher_prompt_ids: list[int], ids: list[int]
    ) -> tuple[Tensor, list[float | None], list[bool]]:
        """Log-probs, advantages (`None` where nothing is scored) and whether a token is to be charged."""
        args, alignment = self.args, self.aligner.align(ids)
        logps = token_logps(self.student, prompt_ids, ids, args.temperature)
        values = logps.tolist()
        advantages: list[float | None] = [None] * len(ids)
        for members, teacher_logp in self._scored_chunks(teacher_prompt_ids, ids):
            split = chunk_advantages([values[i] for i in members], teacher_logp, args.credit)
            for index, advantage in zip(members, split, strict=True):
                advantages[index] = advantage
        if args.segmentation == "text":
            for index, correction in self.corrections(prompt_ids, ids, values, self._trained_chunks(ids)).items():
                advantages[index] -= correction
        if (clip := args.advantage_clip) is not None:
            advantages = [None if a is None else max(-clip, min(clip, a)) for a in advantages]
        charged = [reason in ("invalid_utf8", "unknown_id") for reason in alignment.drop_reasons]
        return logps, advantages, charged

    def _scored_chunks(self, teacher_prompt_ids: list[int], ids: list[int]) -> list[tuple[list[int], float]]:
        """Positions of the student tokens of each chunk that is trained on, with `L_T`."""
        alignment, chunks = self.aligner.align(ids), self._trained_chunks(ids)
        with torch.no_grad():
            teacher = token_logps(
                self.teacher, teacher_prompt_ids, alignment.teacher_ids, self.args.temperature
            ).tolist()
        found = []
        for chunk in set(chunks) - {-1}:
            members = [index for index, other in enumerate(chunks) if other == chunk]
            scores = [p for p, other in zip(teacher, alignment.teacher_chunks, strict=True) if other == chunk]
            found.append((members, sum(scores)))
        return found

    def chunk_jsd(self, rollouts: dict[str, list[int]]) -> Tensor:
        """Sum of the divergences of all chunks over the number of their student tokens, with gradient."""
        beta, total, count = self.args.beta, torch.zeros((), dtype=torch.float64), 0
        for prompt, ids in rollouts.items():
            prompt_ids, teacher_prompt_ids = self.tokenize(prompt)
            logps = token_logps(self.student, prompt_ids, ids, self.args.temperature)
            for members, teacher_logp in self._scored_chunks(teacher_prompt_ids, ids):
                p = (logps[members].sum() / self.args.chunk_temperature).exp()
                q = torch.tensor(teacher_logp / self.args.chunk_temperature).double().exp()
                student, teacher = torch.stack([p, 1 - p]), torch.stack([q, 1 - q])
                mixture = beta * teacher + (1 - beta) * student
                total = total + beta * (teacher * (teacher / mixture).log()).sum()
                total = total + (1 - beta) * (student * (student / mixture).log()).sum()
                count += len(members)
        return total / max(count, 1)

    def advantages_of(self, prompt: str, ids: list[int]) -> list[float | None]:
        """Advantage of each token of a completion, `None` where it is not scored."""
        with torch.no_grad():
            return self._row(*self.tokenize(prompt), ids)[1]

    def _trained_chunks(self, ids: list[int]) -> list[int]:
        """Chunk of each token, without the last one of a completion that was cut off."""
        alignment = self.aligner.align(ids)
        left_out = {-1}
        if not self.aligner.same_vocabulary and not (ids and ids[-1] in self.aligner.student_stop_ids):
            left_out.add(alignment.num_chunks - 1)
        most = 1 if self.args.one_to_one_only else self.args.max_chunk_tokens
        for chunk in range(alignment.num_chunks):
            if (
                most is not None
                and max(side.count(chunk) for side in (alignment.student_chunks, alignment.teacher_chunks)) > most
            ):
                left_out.add(chunk)
            members = [token for token, other in zip(ids, alignment.student_chunks, strict=True) if other == chunk]
            if self.args.drop_whitespace and self.decode(members).isspace():
                left_out.add(chunk)
        return [-1 if chunk in left_out else chunk for chunk in alignment.student_chunks]

    def corrections_of(self, prompt: str, ids: list[int]) -> list[float]:
        """What `segmentation="text"` takes off the advantage of each token of a completion."""
        prompt_ids, _ = self.tokenize(prompt)
        with torch.no_grad():
            logps = token_logps(self.student, prompt_ids, ids, self.args.temperature).tolist()
        found = self.corrections(prompt_ids, ids, logps, self._trained_chunks(ids))
        return [found.get(index, 0.0) for index in range(len(ids))]

    def corrections(
        self, prompt_ids: list[int], ids: list[int], logps: list[float], chunks: list[int]
    ) -> dict[int, float]:
        """Position -> what `segmentation="text"` takes off its advantage."""
        canonical = self.aligner.canonical(ids)
        with torch.no_grad():
            other = token_logps(self.student, prompt_ids, canonical.teacher_ids, self.args.temperature).tolist()
        found: dict[int, float] = {}
        for unit in find_units(chunks, canonical.student_chunks):
            regions = {canonical.student_chunks[index] for index in unit}
            if -1 in regions or any(chunks[index] == -1 for index in unit):
                continue
            path = [j for j, region in enumerate(canonical.teacher_chunks) if region in regions]
            if [ids[index] for index in unit] == [canonical.teacher_ids[j] for j in path]:
                continue
            split = unit_corrections([logps[i] for i in unit], sum(other[j] for j in path), self.args.credit)
            found |= zip(unit, split, strict=True)
        return found


def charge_applies(dropped_advantage: float | str) -> bool:
    """A charge of zero means that the tokens are not trained on at all."""
    return dropped_advantage == "mean" or dropped_advantage != 0.0
