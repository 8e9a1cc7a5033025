"""The help of `trl-xtok gkd`: what is used most comes first, and what is refused at any value is left out."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterable
from types import FunctionType
from typing import Any

from ..training.config_checks import BY_NAME, DICTIONARIES, ONLY_VALUE


_MOST_USED = """
    model_name_or_path teacher_model_name_or_path dataset_name output_dir use_peft load_teacher_in_4bit load_in_4bit
    learning_rate max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_new_tokens
    max_length eval_strategy logging_steps log_completions save_steps report_to resume_from_checkpoint push_to_hub
    seed dry_run
"""
_GROUPS = {
    "Most used": _MOST_USED,
    "Objective": """
        objective beta temperature scoring_temperature lmbda seq_kd credit segmentation advantage_clip
        advantage_baseline canonical_guard dropped_advantage max_lookahead max_chunk_tokens drop_whitespace
        one_to_one_only min_coverage chunk_temperature chunk_weight crossentropy_weight
    """,
    "Teacher": """
        teacher_model_revision teacher_model_init_kwargs teacher_quantization_config offload_teacher
        teacher_chat_template_kwargs teacher_chat_template_path teacher_weights
    """,
    "Teacher behind a server": """
        teacher_server_url teacher_server_model teacher_server_timeout teacher_server_max_concurrency
        teacher_score_cache
    """,
    "Student": """
        model_revision dtype attn_implementation load_in_8bit bnb_4bit_quant_type use_bnb_nested_quant
        bnb_4bit_quant_storage model_init_kwargs trust_remote_code chat_template_path chat_template_kwargs eos_token
        pad_token disable_dropout
    """,
    "Adapter": """
        lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save use_rslora
        use_dora
    """,
    "Data": """
        dataset_config dataset_train_split dataset_test_split dataset_streaming datasets streaming test_split_size
        assistant_turns dataset_text_field eval_on_dataset
    """,
    "Rollouts and memory": """
        max_completion_length generation_batch_size block_size loss_backend gradient_checkpointing
        activation_checkpointing activation_offloading bf16 fp16
    """,
    "Rollouts from vLLM": """
        use_vllm vllm_mode vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_weight_sync
        vllm_weight_sync_dir vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
        vllm_tensor_parallel_size vllm_enable_sleep_mode vllm_model_impl
    """,
    "Logs": "num_completions_to_print log_unique_prompts run_name logging_strategy logging_first_step disable_tqdm",
}
# In the words of this command, where TRL's say less.
_SAID = {
    "model_name_or_path": "The student: a name on the Hub, or the path of a folder.",
    "dataset_name": "A name on the Hub, a folder, or a file (JSON, Parquet, CSV, text).",
    "dataset_train_split": "Split to train on, or a part of it such as `train[:1000]`.",
    "dataset_test_split": "Split to evaluate on, if `eval_strategy` says when.",
    "datasets": "Several datasets, as a list in the configuration file.",
    "output_dir": "Folder for the student and its checkpoints.",
    "use_peft": "Train a LoRA adapter instead of all weights.",
    "load_in_4bit": "Load the student in 4 bits. Needs `use_peft`.",
    "load_in_8bit": "Load the student in 8 bits. Needs `use_peft`.",
    "dtype": "Precision of the student's weights.",
    "attn_implementation": "Attention of the student; that of the teacher is in `teacher_model_init_kwargs`.",
    "seq_kd": "Whether the teacher writes the completions that the student does not write (see `lmbda`).",
    "max_length": "Most tokens of a prompt and its completion together.",
    "pad_token": "The student's pad token; by default its own, else its EOS token.",
    "model_init_kwargs": "Arguments of `AutoModelForCausalLM.from_pretrained` for the student.",
    "teacher_model_init_kwargs": "Arguments of `AutoModelForCausalLM.from_pretrained` for the teacher.",
    "resume_from_checkpoint": "Folder of a checkpoint, or `true` for the last complete one in `output_dir`.",
}
_REST = "Training arguments of Transformers"
# Refused at any value but the default, by their dataclass, the trainer or the command.
_HIDDEN = {
    *ONLY_VALUE, *("parallelism_config", "torch_compile_backend", "torch_compile_mode"),
    *("do_train", "do_eval", "do_predict", "ignore_bias_buffers", "lora_task_type"),
}  # fmt: skip
_HEAD = """\
usage: trl-xtok gkd --model_name_or_path STUDENT --teacher_model_name_or_path TEACHER
                    --dataset_name DATASET [...]

Distil a teacher into a student of another model family, on-policy.

  --config FILE
      YAML file with any of the arguments below; flags win. `env:` sets
      environment variables, `datasets:` mixes several datasets.
  --accelerate_config NAME
      single_gpu, multi_gpu, fsdp2, zero1, zero2, or the path of a configuration of Accelerate.
  Flags of `accelerate launch`, such as --num_processes, are handed on to it.
"""
_TAIL = "Each flag can also be written with hyphens. Arguments that this trainer refuses are left out."


def help_page(parser: Any) -> str:
    """The help as text."""
    actions = {action.dest: action for action in reversed(parser.actions()) if action.dest not in _HIDDEN}
    listed = {title: names.split() for title, names in _GROUPS.items()}
    rest = sorted(actions.keys() - {name for names in listed.values() for name in names})
    groups = {**listed, _REST: rest}
    width = min(shutil.get_terminal_size().columns, 120)
    parts = [_HEAD, *(_group(title, (actions[name] for name in names), width) for title, names in groups.items())]
    return "\n".join([*parts, _TAIL])


def _group(title: str, actions: Iterable[argparse.Action], width: int) -> str:
    return "\n".join([f"{title}:", *(_entry(action, width) for action in actions), ""])


def _entry(action: argparse.Action, width: int) -> str:
    # The first sentence; the whole docstring is in the documentation.
    first = re.split(r"(?<=[^.]\.)\s+(?=[A-Z`])", " ".join((action.help or "").replace("%%", "%").split()))[0]
    text = _SAID.get(action.dest, first)
    known = "" if action.default in (None, "", argparse.SUPPRESS, []) else f" (default: {action.default})"
    return "\n".join([
        f"  {action.option_strings[0]}{_value(action)}",
        textwrap.fill(text + known, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ])  # fmt: skip


def _value(action: argparse.Action) -> str:
    if action.choices:
        return " {" + ",".join(map(str, action.choices)) + "}"
    if action.const is True:
        return " [BOOL]"
    if action.dest.endswith("_kwargs") or action.dest in DICTIONARIES:
        return " JSON"
    name = action.type.__name__ if isinstance(action.type, type | FunctionType) else ""
    text = "TEXT|JSON" if action.dest in BY_NAME else "TEXT"
    value = {"int": "INT", "float": "FLOAT", "string_to_bool": "BOOL"}.get(name, text)
    return f" {value} [...]" if action.nargs == "+" else f" {value}"
