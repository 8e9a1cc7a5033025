"""Sharded runs in two processes, for `test_sharding.py` and `test_deepspeed.py`: what they save and go on from."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from tests.training.fixed_rollouts import whole
from tests.training.runs import logged, lora
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args, tiny_trainer
from tests.training.two_ranks import shard_on_a_cpu
from trl_xtok import CrossTokenizerGKDTrainer


# What `accelerate launch` sets for TRL's `fsdp2.yaml`.
LAUNCHER = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


ZERO = {
    "zero_optimization": {"stage": 2},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_allow_untested_optimizer": True,
}


class Recorder(CrossTokenizerGKDTrainer):
    """Keeps the last log-probs of the student."""

    def _student_scores(self, model, batch):
        scores = super()._student_scores(model, batch)
        self.logps = scores.logps.detach()
        return scores


def make(student: str, teacher: str, folder: str, **changes: Any) -> Recorder:
    """A trainer of four steps that saves after the second."""
    torch.manual_seed(0)
    steps = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "max_new_tokens": 8}
    peft_config = changes.pop("peft_config", None)
    dataset = prompt_dataset(PROMPTS)
    args = tiny_args(folder, **steps | changes)
    return tiny_trainer(student, teacher, args, trainer_class=Recorder, train_dataset=dataset, peft_config=peft_config)


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    # The wrapper around each layer whose activations FSDP checkpoints is no part of its name.
    return {
        name.replace("_checkpoint_wrapped_module.", ""): whole(parameter.detach())
        for name, parameter in model.named_parameters()
    }


def whole_run(student: str, teacher: str, folder: str, **changes: Any) -> dict[str, Any]:
    """Train, save, and go on from the middle."""
    trainer = make(student, teacher, folder, **changes)
    trainer.train()
    parameters = [*trainer.model.parameters()]
    local = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    trainer.save_model(f"{folder}/final")
    resumed = make(student, teacher, folder, **changes)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    ends = [_parameters(each.model) for each in (trainer, resumed)]
    result = {
        "share": local / sum(p.numel() for p in parameters),
        "losses": [entry["loss"] for entry in logged(trainer)],
        "resumed": [entry["loss"] for entry in logged(resumed)],
        "same end": all(value.equal(ends[1][name]) for name, value in ends[0].items()),
        "rounded": trainer.logps.equal(trainer.logps.bfloat16().float()),
        "dtype": str(trainer.logps.dtype),
        "teacher": sum(float(p.double().abs().sum()) for p in trainer.teacher.model.parameters()),
    }
    if "peft_config" not in changes:
        saved = AutoModelForCausalLM.from_pretrained(f"{folder}/final").state_dict()
        result["saved"] = all(saved[name].equal(value) for name, value in ends[0].items())
    return result


def fsdp(student: str, teacher: str, folder: str) -> dict[str, dict[str, Any]]:
    """Runs with FSDP2, asked for in the arguments and by the launcher."""
    shard_on_a_cpu()
    # Accelerate has FSDP checkpoint activations, which are gathered anew.
    settings = {"fsdp": True, "fsdp_config": {"activation_checkpointing": True}, "bf16": True}
    results = {"in the arguments": whole_run(student, teacher, f"{folder}/arguments", **settings)}
    os.environ |= LAUNCHER
    return results | {"launched": whole_run(student, teacher, f"{folder}/launched", peft_config=lora())}


def ddp(student: str, teacher: str, folder: str, **settings: Any) -> dict[str, dict[str, Any]]:
    """Runs with all of the student, and with an adapter."""
    adapter = whole_run(student, teacher, f"{folder}/adapter", peft_config=lora(), **settings)
    return {"whole": whole_run(student, teacher, f"{folder}/whole", **settings), "adapter": adapter}


def zero2(student: str, teacher: str, folder: str) -> dict[str, dict[str, Any]]:
    """The same with DeepSpeed, which Accelerate takes for no more than DDP where it is told of a CPU."""
    return ddp(student, teacher, folder, deepspeed=ZERO, use_cpu=False)


def main(student: str, teacher: str, folder: str, way: str) -> None:
    """Write down what the runs came to, for this rank."""
    results = {"fsdp": fsdp, "ddp": ddp, "zero2": zero2}[way](student, teacher, folder)
    Path(folder, f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
