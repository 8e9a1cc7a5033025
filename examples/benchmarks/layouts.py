"""Compute layouts of a large teacher and a student on 8 to 64 GPUs: memory, arithmetic, traffic, time of a step.

    python -m examples.benchmarks.layouts                               # Qwen2.5-72B into Llama-3.1-8B, on H100
    python -m examples.benchmarks.layouts --tables traffic steps        # some of the tables
    python -m examples.benchmarks.layouts --teacher Llama-3.1-70B --student path/to/config.json --completion 4096
    python -m examples.benchmarks.layouts --assume train_mfu=0.25 bandwidth=2.0e12

Nothing is run and nothing is measured. Models are known by name or read from a `config.json`; `--assume` replaces any
of `Assumptions`. It prints Markdown.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields, replace

from trl_xtok.errors import XTokError
from trl_xtok.planning.gpus import GIB

from .arguments import at_least_one
from .layout_models import MODELS, Shape, find_model
from .layout_shards import moved_table, sharded_table
from .layout_steps import GPU_BYTES, LAYOUTS, Assumptions, Plan, step_time
from .layout_students import ITEMS, LORA, TRAININGS, student_memory
from .layout_units import gib, seconds_text, size_text
from .report import markdown_table


# Bytes of a logit in bfloat16 and of its log-prob in float32, which vLLM holds for a whole request.
_PROMPT_LOGPROB_BYTES = 6
_TOP = 64
STUDENTS = ("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B", "Qwen2.5-14B", "Qwen2.5-32B")


def models_table(plan: Plan) -> str:
    """Weights, keys and values, and operations per token."""
    header = ("model", "weights", "bf16 GiB", "fp8 GiB", "KV per token", "GFLOP scored", "LoRA", "full")
    rows = []
    for shape in {**MODELS, plan.student.name: plan.student, plan.teacher.name: plan.teacher}.values():
        flops = shape.forward_flops(plan.length / 2) / 1e9
        rows.append(
            (
                *(
                    shape.name,
                    f"{shape.parameters / 1e9:.2f} B",
                    gib(shape.weight_bytes()),
                    gib(shape.weight_bytes(1)),
                ),
                *(f"{shape.kv_bytes() / 1024:.0f} KiB", f"{flops:.0f}", f"{3 * flops:.0f}", f"{4 * flops:.0f}"),
            )
        )
    return markdown_table(header, rows)


def students_table(plan: Plan) -> str:
    """Which students one GPU can train."""
    rows = []
    for name in STUDENTS:
        shape = MODELS[name]
        for training in TRAININGS:
            least = shape.parameters * training.bytes_per_weight
            if not training.lora and least > GPU_BYTES:
                # It is not walked through to see how much more it is.
                rows.append((name, training.label, *["-"] * 5, f"over {gib(least)}", "-"))
                continue
            items = student_memory(shape, training, rows=2, prompt=plan.prompt, completion=plan.completion)
            parts = (
                items["frozen weights"] + items["trained weights"],
                items["optimizer state"],
                items["gradients"] + items["DDP buckets"],
                items["activations and loss blocks"],
                items["overhead"],
            )
            left = GPU_BYTES - sum(parts)
            beside = left - shape.weight_bytes() - plan.assumed.engine_overhead
            # New weights for an engine cannot be read from quantized ones.
            room = "-" if left < 0 else "`generate`" if training.bits else "none" if beside < 0 else gib(beside)
            rows.append((name, training.label, *map(gib, parts), gib(sum(parts)), room))
    header = ("weights", "optimizer", "gradients, twice", "activations", "overhead", "together", "left for KV cache")
    return markdown_table(("student", "trained", *header), rows)


def memory_table(plan: Plan) -> str:
    """What one GPU of each role holds."""
    assumed, student, teacher = plan.assumed, plan.student, plan.teacher
    items = student_memory(student, LORA, rows=2, prompt=plan.prompt, completion=plan.completion)
    logprobs = plan.length * assumed.teacher_ratio * teacher.vocab_size * _PROMPT_LOGPROB_BYTES

    def engine(shape: Shape, share: float, parallel: int = 1, *, is_fp8: bool = False) -> dict[str, float]:
        return {
            "engine: weights": shape.weight_bytes(1 if is_fp8 else 2) / parallel,
            "engine: overhead": assumed.engine_overhead,
            "engine: KV cache": plan.cache_bytes(shape, share, parallel, is_fp8=is_fp8),
        }

    scored = {"log-probs of a prompt": logprobs}
    roles = {
        "teacher, bf16, TP 4": engine(teacher, assumed.teacher_utilization, 4) | scored,
        "teacher, fp8, TP 2": engine(teacher, assumed.teacher_utilization, 2, is_fp8=True) | scored,
        "student and rollouts": items | engine(student, assumed.colocated_utilization),
        "student": items,
        "rollouts": engine(student, assumed.rollout_utilization),
    }
    names = [name for name in ITEMS if items[name]] + [*engine(student, 1.0), *scored]
    rows = [(name, *(gib(role.get(name, 0)) for role in roles.values())) for name in names]
    totals = [sum(role.values()) for role in roles.values()]
    rows.append(("together", *map(gib, totals)))
    rows.append((f"left of {GPU_BYTES / GIB:.1f}", *(gib(GPU_BYTES - total) for total in totals)))
    return markdown_table(("GiB per GPU", *roles), rows)


def assumed_table(plan: Plan) -> str:
    """What is assumed."""
    rows = [
        (each.metadata["meaning"], f"`{each.name}`", f"{getattr(plan.assumed, each.name):g}")
        for each in fields(Assumptions)
    ]
    return markdown_table(("what it is", "name", "value"), rows)


def reply_bytes(top: int = 0) -> int:
    """Bytes of JSON for one token of a scoring reply of vLLM, with the ids that are sent there and back."""
    entry = {"logprob": -1.2345678806304932, "rank": 12, "decoded_token": " word"}
    entries = {str(10_000 + number): entry for number in range(top + 1)}
    return len(json.dumps(entries, separators=(",", ":"))) + len(",") + 2 * len("10000,")


def traffic_table(plan: Plan, batch: int) -> str:
    """Bytes from the teacher to the trainer in a step."""
    scored = batch * plan.completion * plan.assumed.teacher_ratio
    read = batch * plan.length * plan.assumed.teacher_ratio
    vocab, other = plan.teacher.vocab_size, MODELS["Qwen3-32B"].vocab_size
    sent = (
        ("one float32 for each token of the completions", 4, scored),
        ("the same as vLLM's JSON, prompts and echoed ids included", reply_bytes(), read),
        (f"the {_TOP} likeliest tokens, id and float32", 8 * _TOP, scored),
        (f"the {_TOP} likeliest tokens as vLLM's JSON", reply_bytes(_TOP), read),
        (f"hidden states of {plan.teacher.hidden_size:,} values, bfloat16", 2 * plan.teacher.hidden_size, scored),
        (f"all {other:,} logits of a Qwen3 teacher, bfloat16", 2 * other, scored),
        (f"all {vocab:,} logits of {plan.teacher.name}, bfloat16", 2 * vocab, scored),
    )
    rows = [
        (
            what,
            f"{size:,}",
            size_text(size * count),
            seconds_text(size * count / 1.25e9),
            seconds_text(size * count / 50e9),
        )
        for what, size, count in sent
    ]
    return markdown_table(("sent", "bytes per token", "in a step", "s at 10 Gbit/s", "s at 400 Gbit/s"), rows)


def steps_table(plan: Plan, batch: int) -> str:
    """Time of a step, phase by phase."""
    rows = []
    for layout in LAYOUTS:
        step = step_time(plan, layout, batch)
        busy = layout.teacher * step.scoring + layout.student * step.training
        busy += (layout.rollouts or layout.student) * step.rollouts
        rows.append(
            (
                *(
                    str(layout.gpus),
                    f"{layout.servers} x TP {layout.tensor_parallel}, {'fp8' if layout.is_fp8 else 'bf16'}",
                ),
                *(str(layout.student), str(layout.rollouts or "on the student's")),
                *(
                    seconds_text(step.rollouts),
                    seconds_text(step.weights),
                    seconds_text(step.scoring),
                    seconds_text(step.training),
                ),
                *(seconds_text(step.seconds), f"{batch * plan.completion / step.seconds:,.0f}"),
                f"{busy / layout.gpus / step.seconds:.0%}",
            )
        )
    header = ("GPUs", "teacher", "student", "rollouts", "rollouts s", "weights s", "scoring s", "training s", "step s")
    return markdown_table((*header, "completion tokens/s", "GPUs busy"), rows)


def tables(plan: Plan, names: Sequence[str], batches: Sequence[int]) -> dict[str, str]:
    """The tables of these names, each under its title."""
    made: dict[str, str] = {}
    for name in names:
        match name:
            case "models":
                made["Models"] = models_table(plan)
            case "students":
                made["Students on one GPU"] = students_table(plan)
            case "sharded":
                made["Sharded students"] = sharded_table(plan)
            case "moved":
                made[f"What sharding moves in a step of {batches[0]:,} completions"] = moved_table(plan, batches[0])
            case "memory":
                made["Memory of each role"] = memory_table(plan)
            case "traffic":
                made[f"Traffic of a step of {batches[0]:,} completions"] = traffic_table(plan, batches[0])
            case "assumed":
                made["What is assumed"] = assumed_table(plan)
            case _:
                made |= {f"Steps of {batch:,} completions": steps_table(plan, batch) for batch in batches}
    return made


def main() -> None:
    """Read the arguments and print the tables."""
    every = ("models", "students", "sharded", "moved", "memory", "traffic", "steps", "assumed")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="Llama-3.1-8B", help="its name here, or its config.json")
    parser.add_argument("--teacher", default="Qwen2.5-72B", help="its name here, or its config.json")
    parser.add_argument("--prompt", type=at_least_one, default=512, help="tokens of a prompt")
    parser.add_argument("--completion", type=at_least_one, default=1536, help="tokens of a completion")
    parser.add_argument("--batch", type=at_least_one, nargs="+", default=[256, 1024], help="completions of a step")
    parser.add_argument("--tables", nargs="+", choices=every, default=every)
    parser.add_argument("--assume", nargs="+", default=[], metavar="NAME=VALUE", help="replaces what is assumed")
    args = parser.parse_args()
    known = {field.name for field in fields(Assumptions)}
    given = dict(each.partition("=")[::2] for each in args.assume)
    if unknown := given.keys() - known:
        parser.error(f"nothing called {', '.join(unknown)} is assumed, but {', '.join(sorted(known))}")
    try:
        assumed = replace(Assumptions(), **{name: float(value) for name, value in given.items()})
        plan = Plan(find_model(args.student), find_model(args.teacher), args.prompt, args.completion, assumed)
        for title, table in tables(plan, args.tables, args.batch).items():
            print(f"{title}\n\n{table}\n")
    except (XTokError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
