"""`trl-xtok gkd --dry_run`: what a run would do, on the console."""

from typing import TYPE_CHECKING

import yaml
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import XTokError


if TYPE_CHECKING:
    from ..training.dry_run import CheckedRun
    from ..training.script_arguments import Arguments
    from ..training.several_teachers import TeacherSource


def dry_run(arguments: "Arguments") -> None:
    """Print what the run would do, once everything is checked that needs no weights.

    Raises:
        XTokError: Whatever the trainer would refuse.
    """
    from ..alignment.audit import audit_tokenizers
    from ..alignment.audit_table import print_audit
    from ..planning.plan_table import print_plan
    from ..training.dry_run import changed_arguments, check_run, plan_run

    # Before what follows from them is written into them.
    changed = changed_arguments(arguments)
    run = check_run(arguments)
    console = Console()
    console.rule("Arguments that are not at their defaults")
    written = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
    console.print(Text(written), soft_wrap=True)
    console.rule("Run")
    console.print(_summary(run))
    ratios = []
    for source in run.teachers:
        console.rule(Text(f"Tokenizers of student and {source.key}" if source.key else "Tokenizers"))
        audit = audit_tokenizers(
            run.student_tokenizer,
            source.tokenizer,
            teacher_chat_template=source.collator.teacher_chat_template,
            min_coverage=arguments.training.min_coverage,
        )
        print_audit(audit, console)
        ratios.append(audit.total.teacher_ratio)
    console.rule("Memory")
    try:
        print_plan(plan_run(run, max(ratios)), console)
    except XTokError as error:
        # The run may well be possible.
        console.print(Text(f"Not known: {error}"))
    console.print("All checks that need no weights have passed. Nothing was trained (--dry_run).")


def _summary(run: "CheckedRun") -> Table:
    args = run.arguments.training
    precision = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    rows = {
        "student": _model(run.arguments.model.model_name_or_path, run.student_config, _how_trained(run)),
        **{
            f"teacher {source.key}".strip(): _model(source.model, source.config, _how_loaded(run, source))
            for source in run.teachers
        },
        "objective": run.objective,
        "precision": f"{precision} on {args.device.type}, {args.world_size} process(es)",
        "prompts": _size(run.train_dataset),
        "prompts to evaluate": "none" if run.eval_dataset is None else _size(run.eval_dataset),
        "prompts per optimizer step": f"{batch}, each answered with at most {args.max_new_tokens} tokens",
        "length": f"{args.max_steps} optimizer steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs",
        "output": str(args.output_dir),
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        # Names are data: brackets in them are not markup.
        table.add_row(name, Text(value))
    return table


def _model(name: object, config: object, how: str) -> str:
    return f"{name} ({type(config).__name__.removesuffix('Config')}), {how}"


def _how_trained(run: "CheckedRun") -> str:
    model = run.arguments.model
    base = " on 4 bits" if model.load_in_4bit else " on 8 bits" if model.load_in_8bit else ""
    return f"LoRA of rank {model.lora_r}{base}" if model.use_peft else "all weights"


def _how_loaded(run: "CheckedRun", source: "TeacherSource") -> str:
    args = run.arguments.training
    if source.urls is not None:
        return f"served by {', '.join(source.urls)} (which was not asked)"
    if args.load_teacher_in_4bit:
        return "4-bit"
    quantization = args.teacher_quantization_config
    return f"quantized with {quantization}" if quantization else "unquantized"


def _size(dataset: object) -> str:
    return f"{len(dataset)} rows" if isinstance(dataset, Dataset) else "a stream"
