"""What two processes end with if one or both of them fail (started with torchrun)."""

import json
import os
import sys
from pathlib import Path

from accelerate import PartialState

from trl_xtok.errors import ServerError
from trl_xtok.training.processes import failing_together


CASES = {
    "disk full": (None, OSError("no space left")),
    "server away": (None, ServerError("away")),
    "both": (ServerError("away"), OSError("no space left")),
    "none": (None, None),
}


def main(folder: str) -> None:
    """Fail as each case says, and write down what was raised here."""
    state = PartialState(cpu=True)
    rank, ended = int(os.environ["RANK"]), {}
    for name, failures in CASES.items():
        try:
            with failing_together("has no scores"):
                if (failure := failures[rank]) is not None:
                    raise failure
        except Exception as error:
            ended[name] = f"{type(error).__name__}: {error}"
    Path(folder, f"rank{rank}.json").write_text(json.dumps(ended))
    # What gloo has running at the end of Python can abort it.
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
