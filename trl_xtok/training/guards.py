"""What stops a run, or warns of it: too little that is trained on, completions that no longer end."""

from collections import Counter
from collections.abc import Mapping

from accelerate.logging import get_logger

from ..errors import CoverageError
from .metrics import DROP_REASONS
from .window import Mode


logger = get_logger(__name__)

# Steps in a row below `min_coverage` after which training stops: one unlucky step is not a trend.
_PATIENCE = 3
# Warnings judge so many completions together: of a few, all may be cut off by chance.
_JUDGED_TOGETHER = 64
# With more of them cut off, hardly any completion shows where to stop, so the stop token is no longer trained on.
_MOST_CUT_OFF = 0.9
# Tokenizers that can spell any text lose nothing, and completions of any length little to their last chunk.
_MOST_DROPPED = 0.1
# Reasons that an argument asks for.
_ASKED_FOR = frozenset({"long_chunk", "not_one_to_one", "whitespace"})
_REMEDIES = (
    "Many `unfinished` or `cut_character` tokens: raise `max_new_tokens`. Many `normalized` or `unspellable` ones: "
    "choose a teacher whose tokenizer can spell the texts. Many `invalid_utf8` or `unknown_id` ones: lower "
    "`learning_rate`."
)


class CoverageGuard:
    """Stops a run of which too little is trained on: what looks like progress there is not.

    Args:
        min_coverage: Lowest share of the completions' tokens that must be trained on.
        kind: Of which steps.
    """

    def __init__(self, min_coverage: float, kind: Mode = "train"):
        self.min_coverage, self._kind = min_coverage, kind
        self._low_steps = 0

    def check(self, coverage: float) -> None:
        """Take note of the coverage of one optimizer step over all ranks.

        Raises:
            CoverageError: If it stays below `min_coverage`.
        """
        self._low_steps = self._low_steps + 1 if coverage < self.min_coverage else 0
        if self._low_steps >= _PATIENCE:
            raise CoverageError(
                f"Only {coverage:.1%} of the tokens could be trained on, below `min_coverage={self.min_coverage}` for "
                f"{self._low_steps} optimizer steps in a row ({self._kind}). The metrics `xtok/dropped_*` say why. "
                f"{_REMEDIES} Many `not_one_to_one`, `long_chunk` or `whitespace` ones: that was asked for."
            )


class EarlyWarnings:
    """Warns, once of each, of what spoils a run while its loss and its reverse KL look sound.

    Completions that no longer end: nine of ten are cut off by `max_new_tokens`. Tokens that are dropped: more than a
    tenth, leaving out what arguments asked for. Either is judged over at least 64 completions.
    """

    def __init__(self):
        self._sums: Counter[str] = Counter()
        self._first_length: float | None = None
        self._said: set[str] = set()

    def check(self, sums: Mapping[str, float]) -> None:
        """Take note of the sums of [`RunMetrics`] over all ranks since the last log."""
        self._sums.update(sums)
        if self._sums["rollouts"] < _JUDGED_TOGETHER:
            return
        judged, self._sums = self._sums, Counter()
        length = judged["sampled"] / judged["rollouts"]
        cut_off = 1 - judged["stopped"] / judged["rollouts"]
        if cut_off >= _MOST_CUT_OFF:
            self._warn("length", self._why_cut_off(cut_off, length))
        self._first_length = length if self._first_length is None else self._first_length
        shares = {reason: judged[f"dropped_{reason}"] / max(judged["sampled"], 1) for reason in DROP_REASONS}
        dropped = {reason: share for reason, share in shares.items() if share and reason not in _ASKED_FOR}
        if sum(dropped.values()) > _MOST_DROPPED:
            said = ", ".join(f"{share:.1%} `{reason}`" for reason, share in sorted(dropped.items(), key=_by_share))
            self._warn("dropped", f"{sum(dropped.values()):.1%} of the tokens are not trained on: {said}. {_REMEDIES}")

    def _why_cut_off(self, cut_off: float, length: float) -> str:
        found = f"{cut_off:.0%} of the completions are cut off by `max_new_tokens`, at a mean length of {length:.0f}"
        if self._first_length is None:
            return (
                f"{found}, from the start, so hardly any shows the student where to stop. Raise `max_new_tokens`; if "
                "that does not help, the student may not know the token that ends a turn: give it prompts and a chat "
                "template that it was trained on."
            )
        return (
            f"{found}; it was {self._first_length:.0f} at the start. Such growth seldom ends by itself. Look at the "
            "completions (`log_completions=True`), lower `learning_rate`, and check that the student's chat template "
            "ends turns with a token that its generation stops at."
        )

    def _warn(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            logger.warning(message)


def _by_share(item: tuple[str, float]) -> float:
    return -item[1]
