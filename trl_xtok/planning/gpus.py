"""Graphics cards by name, and how much of their memory a run can have."""

from dataclasses import dataclass

from ..errors import ConfigError


GIB = 2**30


@dataclass(frozen=True, slots=True)
class GPU:
    """A graphics card.

    Attributes:
        name: What it is called.
        gib: Its memory as PyTorch reports it, rounded down, in GiB; less than the name says.
        has_bf16: Whether it computes in bfloat16.
    """

    name: str
    gib: float
    has_bf16: bool = True

    @property
    def bytes(self) -> int:
        """Its memory in bytes."""
        return int(self.gib * GIB)


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("T4", 14.5, has_bf16=False),
        GPU("L4", 22.0),
        GPU("A10G", 22.0),
        GPU("A100-40GB", 39.3),
        GPU("A100-80GB", 79.1),
        GPU("H100", 79.1),
    )
}


def find_gpu(name: str) -> GPU:
    """The card of a name, in whatever case.

    Raises:
        ConfigError: If there is no such card here.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise ConfigError(f"No graphics card is called {name!r} here. Known are {', '.join(GPUS)}.")
