"""A teacher behind a vLLM server, of any size: it says one number per token, and only its tokenizer is here."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..alignment.token_bytes import PROBE_TEXT
from ..errors import ModelError, TokenizerError
from ..serving.models import ServedModel, find_replicas, tokenize
from ..serving.score_cache import ScoreCache
from ..serving.scores import BackgroundScores, Completion, ServedScorer, score
from ..serving.server import VLLMServer
from .config import CrossTokenizerGKDConfig
from .loading import Model, context_length, reach_of, read_teacher_config
from .processes import failing_together
from .trl_compat import TeacherStandIn


_logger = logging.getLogger(__name__)


class ServedTeacher:
    """Scores with a model that one or several vLLM servers have.

    The scores are those of the server at temperature 1. What is beyond its context, outside of the vocabulary, or
    without a usable number in its reply gets NaN.

    Args:
        scorer: Asks the servers.
        model: What they say of the model.
        config: With the context and the size of the vocabulary; see `served_config`.

    Attributes:
        name: What the server read the model from, or else its name there.
        model: Stands in for the model, without weights.
        config: The same.
        reach: How far the server can read.
        scorer: The same.
    """

    def __init__(self, scorer: ServedScorer, model: ServedModel, config: PreTrainedConfig):
        self.name = model.root or model.name
        self.scorer, self.config = scorer, config
        self.model = TeacherStandIn(config)
        self.reach = reach_of(config)
        self._scores = BackgroundScores(scorer)

    def forget(self) -> None:
        """See [`Teaching.forget`]."""
        self._scores.close()
        self._scores = BackgroundScores(self.scorer)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Nothing is moved; but if one process has no scores, none goes on, and all fail for the same reason."""
        with failing_together("has no scores of the teacher"):
            yield

    def expect(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        """Ask for them in the background."""
        self._scores.expect(self._readable(*pair) for pair in zip(prompts, completions, strict=True))

    def token_logps(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> Float[Tensor, " teacher_tokens"]:
        """See [`Teacher.token_logps`].

        Raises:
            ServerError: If a server stays away, or answers what cannot be used.
            CacheError: If the file with the scores cannot be used.
        """
        scores = self._scores.wait([self._readable(*pair) for pair in zip(prompts, completions, strict=True)])
        logps = torch.full((sum(map(len, completions)),), torch.nan)
        start = 0
        for completion, values in zip(completions, scores, strict=True):
            logps[start : start + len(values)] = torch.tensor(values)
            start += len(completion)
        return logps

    def _readable(self, prompt: Sequence[int], completion: Sequence[int]) -> Completion:
        """As much as the server can read."""
        return Completion((*prompt, *completion[: self.reach.of(prompt, completion)]), len(prompt))


def connect(
    urls: Sequence[str],
    teacher: Model | None,
    tokenizer: PreTrainedTokenizerBase,
    args: CrossTokenizerGKDConfig,
    key: str = "",
) -> ServedTeacher:
    """The teacher behind one or several addresses, once it is known to be the right one.

    Args:
        urls: Addresses of servers that have it.
        teacher: The name of what the tokenizer was read from, if it has one.
        tokenizer: The teacher's.
        args: How to ask them.
        key: What the dataset calls it, if there are several.

    Raises:
        ServerError: If a server does not answer in time, does not have the model, or does not score.
        TokenizerError: If its tokenizer is another one.
        CacheError: If the file with the scores cannot be used.
    """
    deadline = args.teacher_server_timeout
    servers = [VLLMServer(url, timeout=deadline / 2, deadline=deadline, name=key) for url in urls]
    served_as = args.teacher_server_model
    model = find_replicas(servers, served_as.get(key) if isinstance(served_as, Mapping) else served_as)
    config = served_config(teacher, tokenizer, args, model.max_model_len)
    for server in servers:
        _check(server, model, tokenizer, context_length(config))
    cache = None
    if args.teacher_score_cache is not None:
        fingerprint = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        identity = {"model": model.name, "root": model.root, "tokenizer": fingerprint}
        cache = ScoreCache(args.teacher_score_cache, identity)
    scorer = ServedScorer(servers, model.name, max_concurrency=args.teacher_server_max_concurrency, cache=cache)
    return ServedTeacher(scorer, model, config)


def served_config(
    teacher: Model | None,
    tokenizer: PreTrainedTokenizerBase,
    args: CrossTokenizerGKDConfig,
    max_model_len: int | None = None,
) -> PreTrainedConfig:
    """What has to be known of a model that is not here: its context and the size of its vocabulary.

    Args:
        teacher: What its configuration is read from. Where there is none, the tokenizer says how large it is.
        tokenizer: The teacher's.
        args: Say how to read it.
        max_model_len: Longest sequence of the server, which must have room for one more token than it scores.
    """
    contexts = [] if max_model_len is None else [max_model_len - 1]
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    try:
        config = None if teacher is None else read_teacher_config(teacher, args)
    except ModelError:
        # A folder with nothing but a tokenizer will do.
        config = None
    if config is not None:
        vocab_size = config.get_text_config().vocab_size
        contexts += [length for length in (context_length(config),) if length is not None]
    return PreTrainedConfig(vocab_size=vocab_size, max_position_embeddings=min(contexts, default=None))


def _check(server: VLLMServer, model: ServedModel, tokenizer: PreTrainedTokenizerBase, context: int | None) -> None:
    """Compare tokenizers on a text, and have it scored."""
    ours = tokenizer.encode(PROBE_TEXT, add_special_tokens=False)
    theirs = tokenize(server, model.name, PROBE_TEXT)
    if theirs is None:
        _logger.warning(
            "%s has no /tokenize, so it was not checked that the tokenizer of %r is the one that was given here.",
            *(server.url, model.name),
        )
    elif theirs != ours:
        raise TokenizerError(
            f"The tokenizer of {model.name!r} at {server.url} makes {theirs[:12]}… of {PROBE_TEXT!r}, and the one "
            f"that was given here {ours[:12]}…. The ids of one model mean nothing to another. Set "
            "`teacher_model_name_or_path` or `teacher_processing_class` to what the server has, or "
            "`teacher_server_url` and `teacher_server_model` to the right server."
        )
    score(server, model.name, [ours[:context]])
