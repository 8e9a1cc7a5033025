"""The command line, `trl-xtok`."""

from .dispatch import main


__all__ = ["main"]
