"""What an optimizer step minimises: which objective, on which chunks, and the loss of each token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from ..alignment.aligner import TokenizerAligner
from ..errors import ConfigError
from ..objectives import LMHead, chunk_jsd, chunk_rkl, chunk_sizes, reverse_kl_estimate, sum_by_chunk, token_logps
from .advantages import Credited, credit_tokens
from .best_metric import refuse_loss
from .config import CrossTokenizerGKDConfig
from .config_checks import CREDITING, ObjectiveName, largest_lookahead, refuse_invalid, refuse_unread
from .lookahead import find_cuts, find_joins, join_chunks
from .scoring import completion_states, read_lm_head, with_head
from .selection import Selection
from .teachers import LocalTeacher, Teacher, expect_by_teacher, in_its_tokens, token_logps_by_teacher
from .vocab_comparison import VocabComparison
from .window import MicroBatch, Rollout, StudentScores, add_scores, assemble


# Of an objective that has both: what comes from distributions that were compared, and from samples.
LOSS_PARTS = ("matched_loss", "unmatched_loss")
# Objectives that compare next-token distributions.
_COMPARING: tuple[ObjectiveName, ...] = ("exact_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd")


def choose_objective(
    args: CrossTokenizerGKDConfig, aligner: TokenizerAligner, eval_dataset: Any = None, *, several: bool = False
) -> ObjectiveName:
    """What `args.objective` means for these two tokenizers, or with several teachers.

    Raises:
        ConfigError: If it cannot serve them, does not read an argument that was set, or has a loss on `eval_dataset`
            by which checkpoints cannot be compared.
    """
    objective = args.objective
    if objective == "auto":
        # A server says nothing of whole distributions, and those of several vocabularies are not compared.
        whole = aligner.same_vocabulary and args.teacher_server_url is None and not several
        objective = "exact_jsd" if whole else "chunk_rkl"
        refuse_unread(args, objective)
        refuse_invalid(args, objective)
    if objective == "exact_jsd" and not aligner.same_vocabulary:
        raise ConfigError(
            "`objective='exact_jsd'` compares the models token by token, but the two tokenizers do not spell the same "
            "bytes id by id. Use 'prefix_jsd' to compare what both can express, or 'chunk_rkl'."
        )
    refuse_loss(args, objective, eval_dataset if isinstance(eval_dataset, dict) else ())
    return objective


@dataclass(frozen=True, slots=True)
class Objective:
    """What is minimised.

    Attributes:
        name: From `choose_objective`.
        comparison: What compares next-token distributions, if the objective does.
        max_lookahead: Largest probability of undoing a cut with which it stays.
        aligners: Know what could undo a cut, one for each teacher; empty if chunks are not joined.
        weights: Of the loss, one for each teacher; empty if all weigh the same.
    """

    name: ObjectiveName
    comparison: VocabComparison | None
    max_lookahead: float = 1.0
    aligners: Sequence[TokenizerAligner] = ()
    weights: Sequence[float] = ()

    def selection(
        self, args: CrossTokenizerGKDConfig, aligners: Sequence[TokenizerAligner], *, on_policy: bool
    ) -> Selection:
        """Which chunks and tokens are trained on."""
        return Selection(
            on_policy=on_policy,
            charge_dropped=on_policy and self.name in CREDITING and args.dropped_advantage != 0,
            imitate=not on_policy and (args.crossentropy_weight > 0 or self.name == "chunk_rkl"),
            keep_unfinished=all(aligner.same_vocabulary for aligner in aligners),
            # Of what the student did not write `hybrid` has nothing to say but on these.
            one_to_one_only=args.one_to_one_only
            or self.name == "shared_vocab_jsd"
            or (self.name == "hybrid" and not on_policy),
            max_chunk_tokens=args.max_chunk_tokens,
            drop_whitespace=args.drop_whitespace,
        )

    def assemble_window(
        self,
        windows: Sequence[Sequence[Rollout]],
        *,
        teachers: Sequence[Teacher],
        selection: Selection,
        device: torch.device,
    ) -> list[MicroBatch]:
        """Put the micro-batches of an optimizer step together, and tell the teachers in which order they come."""
        if self._asks_teachers(selection):
            expect_by_teacher(windows, teachers)
        return [self._assemble(rollouts, teachers, selection, device) for rollouts in windows]

    def _assemble(
        self, rollouts: Sequence[Rollout], teachers: Sequence[Teacher], selection: Selection, device: torch.device
    ) -> MicroBatch:
        readable = [len(rollout.alignment.teacher_ids) for rollout in rollouts]
        if self._asks_teachers(selection):
            readable = [
                teachers[rollout.teacher].reach.of(rollout.teacher_prompt_ids, rollout.alignment.teacher_ids)
                for rollout in rollouts
            ]
        batch = assemble(rollouts, readable, selection, device)
        if self.weights:
            weights = [self.weights[rollout.teacher] for rollout in rollouts for _ in rollout.completion_ids]
            batch.weights = torch.tensor(weights, device=device)
        return batch

    def _asks_teachers(self, selection: Selection) -> bool:
        """Nothing but the cross-entropy is left of `chunk_rkl` where the student did not write."""
        return self.name != "chunk_rkl" or selection.on_policy

    def score(self, batch: MicroBatch, teachers: Sequence[Teacher]) -> None:
        """Have the teachers say what this objective reads of them, if they have not been asked ahead."""
        logps, states = batch.ahead or self._ask(batch, teachers)
        batch.ahead = None
        add_scores(batch, logps)
        if self.comparison is not None and states is not None:
            student_ids = [token_id for rollout in batch.rollouts for token_id in rollout.completion_ids]
            teacher_ids = [token_id for rollout in batch.rollouts for token_id in rollout.alignment.teacher_ids]
            student, teacher = (student_ids, batch.chunks.tolist()), (teacher_ids, batch.teacher_chunks)
            batch.starts = self.comparison.starts(student, teacher, states, batch.chunks.device)
        # Chunks that nothing is said of, or that are compared or left out, are none to join.
        if self.aligners and self._asks_teachers(batch.selection) and not batch.selection.one_to_one_only:
            batch.cuts = find_cuts(batch.rollouts, batch, self.aligners)

    def score_ahead(self, batch: MicroBatch, teachers: Sequence[Teacher]) -> None:
        """Have teachers that compute here begin with a micro-batch; on a GPU that does not wait for the result."""
        if all(isinstance(teacher, LocalTeacher) for teacher in teachers):
            batch.ahead = self._ask(batch, teachers)

    def _ask(self, batch: MicroBatch, teachers: Sequence[Teacher]) -> tuple[Tensor, Tensor | None]:
        """The log-prob of each teacher token and, for a comparison, the hidden state that predicts it."""
        # A process whose rows only fill up the last batch of an evaluation has none.
        if not self._asks_teachers(batch.selection) or not batch.rollouts:
            return torch.zeros(len(batch.teacher_chunks)), None
        if self.comparison is None:
            return token_logps_by_teacher(batch.rollouts, teachers), None
        return cast(LocalTeacher, teachers[0]).token_logps_and_states(*in_its_tokens(batch.rollouts))


def make_objective(
    name: ObjectiveName,
    args: CrossTokenizerGKDConfig,
    aligners: Sequence[TokenizerAligner],
    student: PreTrainedModel,
    teachers: Mapping[str, Teacher],
) -> Objective:
    """Set up what `name` stands for; for `prefix_jsd` that takes seconds.

    Raises:
        TokenizerError: If distributions are to be compared that have no event in common.
    """
    limit = largest_lookahead(args, name)
    joining = aligners if limit < 1 else ()
    if name not in _COMPARING and args.advantage_baseline != "position":
        given = args.teacher_weights or {}
        return Objective(name, None, limit, joining, [given.get(key, 1.0) for key in teachers] if given else ())
    # What compares is refused beside a served teacher, and beside several.
    (teacher,) = teachers.values()
    head = cast(LocalTeacher, teacher).lm_head
    rows = len(read_lm_head(student).weight)
    return Objective(name, VocabComparison(name, aligners[0], rows, head.to(args.device), args), limit, joining)


def student_scores(
    student: PreTrainedModel, batch: MicroBatch, objective: Objective, args: CrossTokenizerGKDConfig
) -> StudentScores:
    """One forward pass of the student over a micro-batch."""
    states = completion_states(student, batch.packed)
    return with_head(student, lambda head: _scores(states, head, batch, objective, args))


def _scores(
    states: Float[Tensor, "tokens hidden"],
    head: LMHead,
    batch: MicroBatch,
    objective: Objective,
    args: CrossTokenizerGKDConfig,
) -> StudentScores:
    # Where only distributions are compared, log-probs are for the metrics.
    reads_logps = objective.name in (*CREDITING, "chunk_jsd") or args.crossentropy_weight > 0
    with torch.set_grad_enabled(torch.is_grad_enabled() and reads_logps):
        logps = token_logps(states, head, batch.packed["targets"], **args.scoring)
    joins = None
    if objective.aligners:
        options = {"temperature": args.scoring["temperature"], "max_lookahead": objective.max_lookahead}
        joins = find_joins(states, head, logps, batch, **options)
        batch = join_chunks(batch, joins)
    if objective.comparison is None or batch.starts is None:
        return StudentScores(logps, joins=joins)
    if objective.name == "chunk_rkl":
        with torch.no_grad():
            divergences = objective.comparison(states, head, batch.starts).divergences.to(logps.dtype)
        baselines = torch.zeros_like(logps).index_add(0, batch.starts.tokens, -divergences)
        return StudentScores(logps, baselines=baselines, joins=joins)
    return StudentScores(logps, objective.comparison(states, head, batch.starts), joins=joins)


def token_losses(
    scores: StudentScores, batch: MicroBatch, objective: Objective, args: CrossTokenizerGKDConfig
) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor | float], Credited | None]:
    """The loss of each completion token, the sums that `RunMetrics` takes, and the advantages if there are any.

    Tokens that are neither compared nor scored nor charged get 0. The divergence of two distributions stands on the
    first token of the chunk that begins there. What the student did not write is compared and imitated; credit, which
    is for what was sampled, is left out.

    Args:
        scores: From `student_scores`.
        batch: The micro-batch they belong to.
        objective: What is minimised.
        args: The training arguments.
    """
    credited, clipped, joined = None, torch.zeros_like(batch.charged), join_chunks(batch, scores.joins)
    if objective.name == "chunk_jsd":
        teacher, options = joined.teacher_logps, {"beta": args.beta, "temperature": args.chunk_temperature}
        losses = chunk_jsd(scores.logps, teacher, joined.chunks, **options)
    elif objective.name in CREDITING and batch.selection.on_policy:
        credited = credit_tokens(scores, batch, args)
        losses, clipped = args.chunk_weight * chunk_rkl(scores.logps, credited.advantages), credited.clipped
    else:
        losses = torch.zeros_like(scores.logps)
    if batch.selection.imitate:
        # `chunk_rkl` without a weight comes here in evaluations only, and has nothing else to say of the dataset.
        losses = losses - (args.crossentropy_weight or 1.0) * scores.logps
    sums = _report(scores.logps.detach(), batch, clipped)
    if args.scoring["temperature"] != args.temperature:
        # Then they say nothing of the entropy of what was sampled from.
        sums.pop("surprise", None)
    if scores.joins is not None:
        sums |= {"joined": scores.joins.sum(), "cuts": float(sum(len(cuts.chunks) for cuts in batch.cuts))}
    credit = losses.detach()
    if joined.starts is not None and scores.compared is not None:
        divergences = scores.compared.divergences.to(losses.dtype)
        losses = losses.index_add(0, joined.starts.tokens, divergences)
        sums |= {"divergence": divergences.detach().sum(), "compared": float(len(divergences))}
    if credited is not None and objective.name in _COMPARING:
        sums |= dict(zip(LOSS_PARTS, ((losses.detach() - credit).sum(), credit.sum()), strict=True))
    return losses if batch.weights is None else losses * batch.weights, sums, credited


class ChunkLogRatios(NamedTuple):
    """How much more likely the student finds each chunk of a micro-batch than the teacher does.

    Attributes:
        log_ratios: `L_S - L_T`, in nats.
        texts: Chunks of text that are trained on.
        ends: Chunks of stop tokens that are trained on.
    """

    log_ratios: Float[Tensor, " chunks"]
    texts: Bool[Tensor, " chunks"]
    ends: Bool[Tensor, " chunks"]


def chunk_log_ratios(student_logps: Float[Tensor, " tokens"], batch: MicroBatch) -> ChunkLogRatios:
    """The log-ratios of a micro-batch, whose mean over the student's own chunks estimates the reverse KL."""
    trained = chunk_sizes(batch.chunks, batch.num_chunks) > 0
    log_ratios = reverse_kl_estimate(sum_by_chunk(student_logps, batch.chunks, batch.num_chunks), batch.teacher_logps)
    ends = trained & (batch.chunk_bytes == 0)
    return ChunkLogRatios(log_ratios, trained & ~ends, ends)


def _report(
    student_logps: Float[Tensor, " tokens"], batch: MicroBatch, clipped: Bool[Tensor, " tokens"]
) -> dict[str, Tensor | float]:
    covered = (batch.chunks >= 0).sum()
    if not batch.selection.on_policy:
        # Log-ratios of what the student did not write estimate no reverse KL.
        return {"covered": covered, "cross_entropy": -student_logps.sum()}
    log_ratios, texts, ends = chunk_log_ratios(student_logps, batch)
    return {
        "covered": covered,
        # What was sampled is on average as unlikely as the entropy says.
        "surprise": -student_logps.sum(),
        "clipped": clipped.sum(),
        "log_ratio": log_ratios[texts].sum(),
        "bytes": batch.chunk_bytes[texts].sum(),
        "end_log_ratio": log_ratios[ends].sum(),
        "ends": ends.sum(),
    }
