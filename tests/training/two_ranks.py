"""Optimizer steps that `test_processes.py` takes in two processes (started with torchrun) and in one."""

import os
import sys
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from tests.training.fixed_rollouts import Step, lora, raw, rollouts, text, train_one_step
from tests.training.tiny_models import PROMPTS


def only(*numbers: int) -> dict[str, list[int]]:
    """Some of the fixed rollouts."""
    return {PROMPTS[i]: rollouts()[PROMPTS[i]] for i in numbers}


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `train_one_step`, for four prompts; two of them go to each rank, in this order if there are two."""
    cut = {PROMPTS[4]: [], PROMPTS[6]: raw(b"\xe4\xbd")}
    unscorable = {PROMPTS[4]: raw(b"\xc3") + text(" a"), PROMPTS[6]: []}
    batch = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    single = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    return {
        # Rollout 3 holds all charged tokens, so one rank knows of none.
        "proportional": {"completions": only(0, 1, 2, 3), "evaluate": True, **batch},
        "additive": {"completions": only(0, 1, 3, 4), "credit": "additive", "segmentation": "text", **batch},
        # Accumulation gives each rank a charged rollout, and one of each rank's micro-batches has none.
        "uniform": {"completions": only(3, 0, 4, 5), "credit": "uniform", **single},
        "chunk": {
            "completions": only(1, 7, 3, 0),
            "credit": "chunk",
            "segmentation": "text",
            "peft_config": lora(),
            "activation_checkpointing": True,
            **single,
        },
        "one rank idle": {"completions": only(0, 1) | cut, **batch},
        "one rank only charged": {"completions": only(0, 1) | unscorable, **batch},
        "mean baseline": {"completions": only(0, 1) | cut, "advantage_baseline": "mean", "evaluate": True, **batch},
        "position baseline": {
            "completions": only(0, 1, 3, 4),
            "advantage_baseline": "position",
            "canonical_guard": 2.0,
            "drop_whitespace": True,
            "evaluate": True,
            **batch,
        },
        "chunk_jsd": {
            "completions": only(0, 1) | unscorable,
            "objective": "chunk_jsd",
            "beta": 0.7,
            "chunk_temperature": 8.0,
            **batch,
        },
        "prefix_jsd": {
            "completions": only(0, 1, 3, 4),
            "objective": "prefix_jsd",
            "beta": 0.3,
            "chunk_weight": 0.5,
            "evaluate": True,
            **batch,
        },
        "one rank compares nothing": {"completions": only(0, 1) | cut, "objective": "shared_vocab_jsd", **batch},
        "off policy": {
            "completions": None,
            "prompts": PROMPTS[:4],
            "written": [" one, 2024 two", " three", " 你好 and more of it", " four"],
            "lmbda": 0.0,
            "objective": "chunk_jsd",
            "crossentropy_weight": 0.2,
            **batch,
        },
        # The second micro-batch of one rank has nothing to compare and nothing to credit.
        "hybrid": {"completions": only(0, 1, 3) | {PROMPTS[6]: []}, "objective": "hybrid", **single},
        "exact_jsd": {
            "completions": only(0, 1) | {PROMPTS[5]: [], PROMPTS[6]: []},
            "objective": "exact_jsd",
            "peft_config": lora(),
            **batch,
        },
        "cross-entropy": {
            "completions": None,
            "prompts": PROMPTS[:4],
            "written": [" one, 2024 two", " three", " 你好 and more of it", " four"],
            "lmbda": 0.0,
            "crossentropy_weight": 0.5,
            **single,
        },
        "both ranks idle": {"completions": {p: text(" a") for p in PROMPTS[:2]} | cut, **batch},
        "streamed": {"completions": only(0, 1, 2, 3), "streamed": True, "evaluate": True, **batch},
        "streamed evaluation": {
            "completions": only(0, 1, 2, 3),
            "streamed_evaluation": True,
            "evaluate": True,
            **batch,
        },
        # One rank has three of the rows and the other one, or none at all.
        "uneven evaluation": {
            "completions": only(0, 1, 2, 3),
            "evaluate": True,
            **(batch | {"per_device_eval_batch_size": 3}),
        },
        "evaluation on one rank": {
            "completions": only(0, 1, 2, 3),
            "evaluate": True,
            "objective": "chunk_jsd",
            **(batch | {"per_device_eval_batch_size": 4}),
        },
        "engine": {
            "completions": None,
            "prompts": ["The same prompt"] * 4,
            "evaluate": True,
            "peft_config": lora(),
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_weight_sync": "reload",
            "vllm_server_base_url": os.environ.get("ENGINE_URL"),
            **batch,
        },
        "sampled": {
            "completions": None,
            "prompts": ["The same prompt"] * 4,
            "evaluate": True,
            "log_completions": True,
            # Two of the six places of the two ranks are filled up.
            **(batch | {"per_device_eval_batch_size": 3}),
        },
    }


def take(student: str, teacher: str, folder: str, case: dict[str, Any]) -> Step:
    """Take the step of a case; for `exact_jsd` the student without its adapter is the teacher."""
    return train_one_step(student, student if case.get("objective") == "exact_jsd" else teacher, folder, **case)


def shard_on_a_cpu() -> None:
    """Have Accelerate shard here what it shards on GPUs only; FSDP itself works over gloo as well."""
    init = PartialState.__init__

    def pretend(self, *args, **kwargs):
        init(self, *args, **kwargs)
        state = PartialState._shared_state
        if state["distributed_type"] == DistributedType.MULTI_CPU:
            state["distributed_type"] = DistributedType.MULTI_XPU

    PartialState.__init__ = pretend


def main(student: str, teacher: str, folder: str, sharded: str = "") -> None:
    """Take all steps and save what they came to, for this rank; if there is a fourth argument, with FSDP."""
    rank, wanted = os.environ["RANK"], cases()
    if sharded:
        shard_on_a_cpu()
        # One process has not all the weights that a server reads.
        wanted = {name: case | {"fsdp": True} for name, case in wanted.items() if name != "engine"}
    steps = {name: take(student, teacher, folder, case) for name, case in wanted.items()}
    torch.save(steps, f"{folder}/rank{rank}.pt")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
