"""`trl-xtok plan`: peak GPU memory of a run, and what fits on a GPU."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .output import as_text, write_output


_OBJECTIVES = ("auto", "chunk_rkl", "chunk_jsd", "exact_jsd", "shared_vocab_jsd", "hybrid", "prefix_jsd")


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `trl-xtok`."""
    parser = commands.add_parser(
        "plan",
        help="peak GPU memory of a run, and what fits on a GPU",
        description="Say what a run needs in memory on each GPU, item by item, which cards it fits on, and the "
        "largest batch that does. Reads configurations, no weights. What is a flag of training, too, means the same.",
    )
    parser.add_argument("student", metavar="STUDENT", help="name or folder of the student")
    parser.add_argument("teacher", metavar="TEACHER", help="name or folder of the teacher")
    _add_models(parser)
    _add_run(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--gpu", action="append", metavar="NAME", help="only this card; several times for several")
    output.add_argument("--format", choices=("rich", "json"), default="rich", help="for reading or for programs")
    output.add_argument("--output", metavar="PATH", help="file to write instead of the terminal")
    parser.set_defaults(run=run)


def _add_models(parser: Any) -> None:
    models = parser.add_argument_group("models")
    models.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "auto"))
    models.add_argument("--load_in_4bit", action="store_true", help="student in 4 bits (QLoRA)")
    models.add_argument("--load_in_8bit", action="store_true", help="student in 8 bits")
    models.add_argument("--use_peft", action="store_true", help="train LoRA instead of all weights")
    models.add_argument("--lora_r", type=int, help="rank (default: 16)")
    models.add_argument("--lora_target_modules", nargs="+", help="by default what PEFT knows for the model")
    models.add_argument("--lora_modules_to_save", nargs="+", help="modules that are trained in full")
    models.add_argument("--load_teacher_in_4bit", action="store_true", help="teacher in 4 bits")
    models.add_argument("--load_teacher_in_8bit", action="store_true", help="teacher in 8 bits")
    models.add_argument("--teacher_dtype", choices=("float32", "bfloat16", "float16"), help="default: as the run")
    models.add_argument("--offload_teacher", action="store_true", help="teacher away while it does not score")
    models.add_argument("--trust_remote_code", action="store_true", help="run code that a model brings along")


def _add_run(parser: Any) -> None:
    group = parser.add_argument_group("run")

    def add_count(name: str, default: int | None, text: str) -> None:
        group.add_argument(name, type=int, default=default, help=f"{text} (default: %(default)s)")

    add_count("--per_device_train_batch_size", 8, "completions of a micro-batch")
    add_count("--gradient_accumulation_steps", 1, "micro-batches of an optimizer step")
    add_count("--generation_batch_size", None, "completions sampled together; None is the micro-batch")
    add_count("--prompt_length", 512, "longest prompt, in student tokens")
    add_count("--max_new_tokens", 128, "longest completion, in student tokens")
    add_count("--num_processes", 1, "GPUs; without --fsdp each holds a copy of everything")
    group.add_argument("--fsdp", action="store_true", help="student sharded over the GPUs (FSDP2)")
    group.add_argument("--sync_each_batch", action="store_true", help="with --fsdp: as in accelerator_config")
    add_count("--block_size", None, "tokens whose logits exist at a time")
    group.add_argument("--teacher_ratio", type=float, default=1.0, help="teacher tokens per student token; see audit")
    group.add_argument("--objective", choices=_OBJECTIVES, default="auto", help="what is minimised")
    group.add_argument("--optim", default="adamw_torch_fused", help="optimizer (default: %(default)s)")
    group.add_argument("--no_gradient_checkpointing", action="store_true", help="keep all activations")
    group.add_argument("--precision", choices=("bf16", "fp16", "fp32"), default="bf16", help="of the run")


def run(args: argparse.Namespace) -> int:
    """Plan and print."""
    for bits in ("load_in_{}bit", "load_teacher_in_{}bit"):
        if getattr(args, bits.format(4)) and getattr(args, bits.format(8)):
            raise ConfigError(f"`--{bits.format(4)}` and `--{bits.format(8)}` contradict each other. Keep one.")
    for name in () if args.use_peft else ("lora_r", "lora_target_modules", "lora_modules_to_save"):
        if getattr(args, name) is not None:
            raise ConfigError(f"`--{name}` has no effect without `--use_peft`. Set that, or leave it out.")
    if (args.load_in_4bit or args.load_in_8bit) and not args.use_peft:
        raise ConfigError(
            "A quantized student cannot be trained by itself. Add `--use_peft`, or drop the quantization."
        )

    if args.sync_each_batch and not args.fsdp:
        raise ConfigError("`--sync_each_batch` has no effect without `--fsdp`. Set that, or leave it out.")

    # It warns of kernels that a plan does not need.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    from ..planning.gpus import GPUS, find_gpu
    from ..planning.plan import plan_memory
    from ..planning.plan_table import print_plan

    gpus = [find_gpu(name) for name in args.gpu] if args.gpu else list(GPUS.values())
    plan = plan_memory(_run_spec(args), gpus)
    if args.output is None and args.format == "rich":
        from rich.console import Console

        print_plan(plan, Console())
        return 0
    if args.format == "json":
        text = json.dumps(plan.to_dict(), indent=1) + "\n"
    else:
        text = as_text(lambda console: print_plan(plan, console), 100)
    if args.output is None:
        print(text, end="")
        return 0
    write_output(Path(args.output), text, example="plan.json" if args.format == "json" else "plan.txt")
    print(f"Written: {args.output}")
    return 0


def _run_spec(args: argparse.Namespace) -> Any:
    import torch
    from peft import LoraConfig

    from ..planning.models import ModelSpec, quantized
    from ..planning.run_spec import RunSpec
    from .tokenizers import load_config

    student, teacher = (
        load_config(name, trust_remote_code=args.trust_remote_code) for name in (args.student, args.teacher)
    )
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    half = dtypes[args.precision]
    dtype = names[args.dtype] if args.dtype != "auto" else student.dtype or torch.float32
    teacher_dtype = names[args.teacher_dtype] if args.teacher_dtype else half or torch.float32
    modules = args.lora_target_modules
    adapter = LoraConfig(
        r=16 if args.lora_r is None else args.lora_r,
        # `all-linear` and patterns are text; names are a list.
        target_modules=modules[0] if modules and len(modules) == 1 and not modules[0].isidentifier() else modules,
        modules_to_save=args.lora_modules_to_save,
        task_type="CAUSAL_LM",
    )
    shared = ("per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size", "prompt_length")
    shared += ("max_new_tokens", "num_processes", "fsdp", "sync_each_batch", "block_size", "teacher_ratio")
    shared += ("objective", "optim")
    return RunSpec(
        student=quantized(
            ModelSpec(student, dtype, adapter=adapter if args.use_peft else None),
            _bits(args.load_in_4bit, args.load_in_8bit, half or dtype),
        ),
        teacher=quantized(
            ModelSpec(teacher, teacher_dtype),
            _bits(args.load_teacher_in_4bit, args.load_teacher_in_8bit, teacher_dtype),
        ),
        autocast=half,
        gradient_checkpointing=None if args.no_gradient_checkpointing else {},
        offload_teacher=args.offload_teacher,
        **{name: getattr(args, name) for name in shared},
    )


def _bits(in_4bit: bool, in_8bit: bool, compute_dtype: Any) -> dict[str, Any] | None:
    if not in_4bit and not in_8bit:
        return None
    return {"load_in_4bit": in_4bit, "load_in_8bit": in_8bit, "bnb_4bit_compute_dtype": compute_dtype}
