"""A memory plan on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .gpus import GIB
from .plan import ITEMS, PHASES, MemoryPlan


def print_plan(plan: MemoryPlan, console: Console) -> None:
    """Print what each phase needs, item by item, and what fits on which card."""
    console.print(_items(plan))
    console.print(
        f"Peak: [bold]{plan.peak / GIB:.2f} GiB[/bold] per device, in the phase [bold]{plan.peak_phase}[/bold], with "
        f"`per_device_train_batch_size={plan.batch_size}`."
    )
    if plan.gpus:
        console.print(_cards(plan))
    for note in plan.notes:
        console.print(Text(note), style="dim")


def _items(plan: MemoryPlan) -> Table:
    table = Table(title="Memory per device (GiB)", title_justify="left")
    table.add_column("item", no_wrap=True)
    for phase in PHASES:
        table.add_column(phase, justify="right", style="bold" if phase == plan.peak_phase else None)
    for item in ITEMS:
        sizes = [plan.phases[phase][item] for phase in PHASES]
        if any(sizes):
            table.add_row(item, *(f"{size / GIB:.2f}" if size else "-" for size in sizes))
    table.add_section()
    table.add_row("together", *(f"{plan.totals[phase] / GIB:.2f}" for phase in PHASES))
    return table


def _cards(plan: MemoryPlan) -> Table:
    table = Table("card", title="What fits", title_justify="left")
    table.add_column("GiB", justify="right")
    table.add_column(f"batch of {plan.batch_size}")
    table.add_column("largest batch", justify="right")
    for gpu in plan.gpus:
        batch = plan.largest_batch[gpu.name]
        fits = (
            Text("fits", "green") if plan.fits(gpu) else Text(f"{plan.peak / GIB - gpu.gib:.1f} GiB too much", "red")
        )
        table.add_row(gpu.name, f"{gpu.gib:.1f}", fits, str(batch) if batch else Text("none", "red"))
    return table
