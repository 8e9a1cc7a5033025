"""Every error that the package raises on purpose.

All share one root, so `except XTokError` catches whatever the package refuses. Each is also the standard-library type
that a caller would expect, so code that catches `ValueError` or `RuntimeError` keeps working. A message says what was
found, why it cannot go on, and what to do.
"""


class XTokError(Exception):
    """Root of all errors raised on purpose."""


class TokenizerError(XTokError, ValueError):
    """A tokenizer cannot be read exactly, so nothing can be aligned with it."""


class TemplateError(XTokError, ValueError):
    """A conversation cannot be rendered for one of the two models."""


class DataError(XTokError, ValueError):
    """A dataset or a row of it cannot be used."""


class ConfigError(XTokError, ValueError):
    """The training arguments contradict each other or ask for what is not supported."""


class ModelError(XTokError, ValueError):
    """A model cannot be scored or trained exactly."""


class CheckpointError(XTokError, ValueError):
    """A run cannot go on from a checkpoint, or from any in a folder."""


class CoverageError(XTokError, RuntimeError):
    """Too few of the sampled tokens could be trained on for the result to mean anything."""


class ServerError(XTokError, RuntimeError):
    """A server cannot be reached, refuses what it was asked, or answers what cannot be used.

    Attributes:
        status: The HTTP status of its answer; `None` if there was none, or if only its content cannot be used.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class ProcessError(XTokError, RuntimeError):
    """Another process of the run failed, for a reason that its own error says."""


class CacheError(XTokError, RuntimeError):
    """A file in which scores are kept cannot be used."""


class DependencyError(XTokError, ImportError):
    """An optional package is needed for what was asked, and it is not installed."""


class ReportError(XTokError, ValueError):
    """There is nothing to make a report of, or it cannot be written where it was asked for."""
