"""Students that FSDP2 shards: what a GPU holds, and what it receives in a step."""

from .layout_models import MODELS, Shape
from .layout_steps import GPU_BYTES, Plan
from .layout_students import FULL, LORA, student_memory, with_more_shards
from .layout_units import gib, seconds_text, size_text
from .report import markdown_table


STUDENTS = ("Llama-3.1-8B", "Qwen2.5-14B", "Qwen2.5-32B", "Llama-3.1-70B")
COUNTS = (4, 8, 16, 32)
# GPUs, and completions of a micro-batch, of the table of what is moved.
_GPUS, _ROWS = 8, 2


def sharded_table(plan: Plan) -> str:
    """What a GPU holds of a student that 4 to 32 of them share."""
    rows = []
    for name in STUDENTS:
        shape = MODELS[name]
        for training in (LORA, FULL):
            sizes = {"rows": _ROWS, "prompt": plan.prompt, "completion": plan.completion}
            few = student_memory(shape, training, **sizes, shards=COUNTS[0])
            needed = [sum(with_more_shards(few, count / COUNTS[0]).values()) for count in COUNTS]
            # In the dtype in which they are computed.
            whole = few["trained weights"] * COUNTS[0] / 2
            rows.append(
                (
                    *(name, training.label),
                    *(gib(need) if need <= GPU_BYTES else f"({gib(need)})" for need in needed),
                    *(gib(few["gathered weights"]), gib(few["activations and loss blocks"]), gib(whole)),
                )
            )
    header = (*(f"{count} GPUs" for count in COUNTS), "gathered", "activations", "whole gradients")
    return markdown_table(("student", "trained", *header), rows)


def gathered_bytes(shape: Shape, *, again: bool = False) -> float:
    """Bytes in bfloat16 that a forward gathers; `again` leaves out head and last norm, which stayed gathered."""
    ends = shape.head + shape.hidden_size
    return 2 * (shape.parameters - (ends if again else 0))


def moved_table(plan: Plan, batch: int) -> str:
    """What each of eight GPUs receives in a step in which all weights of a sharded student are trained."""
    student, assumed = plan.student, plan.assumed
    passes = -(-batch // (_GPUS * _ROWS))
    moved = (
        ("weights for a forward", gathered_bytes(student), passes),
        ("weights for its backward", gathered_bytes(student, again=True), passes),
        ("gradients, bfloat16, `sync_each_batch`", gathered_bytes(student), passes),
        ("gradients, only after the last micro-batch", gathered_bytes(student), 1),
        ("weights for one more token from `generate`", gathered_bytes(student, again=True), plan.completion),
        ("new weights for an engine", gathered_bytes(student), 1),
    )
    rows = []
    for what, size, times in moved:
        received = size * (_GPUS - 1) / _GPUS
        total = received * times
        seconds = (seconds_text(total / rate) for rate in (assumed.nvlink, assumed.fabric))
        rows.append((what, size_text(received), f"{times:,}", size_text(total), *seconds))
    header = ("received by a GPU", "times", "in a step", "s inside a machine", "s between machines")
    return markdown_table(("what", *header), rows)
