"""Notices of other packages that a user of the command line can do nothing about."""

import logging
import warnings


def quiet_notices() -> None:
    """Keep them off the screen."""
    # TRL 1.16 still reads and sets the names that transformers 5.23 gave up.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
    # It asks for a package that would make 4-bit models faster on a CPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("transformers.generation.utils").addFilter(_is_for_the_user)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    # TRL's rollouts give a configuration and an argument.
    return "Passing `generation_config` together with" not in record.getMessage()
