"""Sharded students: what FSDP2 itself holds, gathers and reduces, on a process group whose collectives do nothing."""

import gc
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from peft import LoraConfig, get_peft_model
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from examples.benchmarks.memory import most_allocated
from trl_xtok.errors import ConfigError
from trl_xtok.planning.models import ModelSpec
from trl_xtok.planning.phases import Walk, WeightlessModel
from trl_xtok.planning.plan import plan_memory
from trl_xtok.planning.run_spec import RunSpec
from trl_xtok.training.scoring import causal_lm, completion_logps, in_forward, pack


VOCAB, ROWS, PROMPT, COMPLETION = 20_000, 2, 60, 12
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": VOCAB}
ADAPTER = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def devices() -> Iterator[int]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield 4
    dist.destroy_process_group()


class Sharded:
    """The student, sharded as Accelerate does it."""

    def __init__(self, config: LlamaConfig, adapter: LoraConfig | None):
        model = LlamaForCausalLM(config)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if adapter is not None:
            model = get_peft_model(model, adapter)
            causal_lm(model).enable_input_require_grads()
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
        )
        state = SimpleNamespace(fsdp_plugin=plugin)
        options = {"mixed_precision": "no", "is_main_process": False, "device": torch.device("cpu")}
        self.model = fsdp2_prepare_model(SimpleNamespace(state=state, **options), model.train())
        self._packed = pack([[1] * PROMPT] * ROWS, [[2] * COMPLETION] * ROWS, torch.device("cpu"))

    def backward(self, *, reduces: bool) -> None:
        """A micro-batch, as the trainer does it."""
        accelerator = SimpleNamespace(
            autocast=lambda: torch.autocast("cpu", enabled=False), unwrap_model=lambda model: model
        )
        self.model.set_requires_gradient_sync(reduces)
        in_forward(
            self.model, accelerator, lambda student: completion_logps(student, self._packed, backend="torch")
        ).sum().backward()

    def peak(self, reductions: list[bool]) -> int:
        """The most bytes beyond the shards in micro-batches of which these reduce gradients."""
        # What is made once is made before.
        self.backward(reduces=True)
        self.model.zero_grad()
        # What other tests left behind would be freed meanwhile, and count as memory that is given back.
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            for reduces in reductions:
                self.backward(reduces=reduces)
        return most_allocated(profiler)

    def bytes_of(self, *, trained: bool) -> int:
        """What this device stores of parameters."""
        parameters = [p for p in self.model.parameters() if p.requires_grad is trained]
        assert all(isinstance(p, DTensor) for p in parameters)
        return sum(p.to_local().untyped_storage().nbytes() for p in parameters)


@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
def test_shards_are_those_of_fsdp(devices, adapter):
    """An odd number of rows is not shared out evenly."""
    config = LlamaConfig(**SHAPE | {"vocab_size": 2_001})
    real, planned = Sharded(config, adapter), WeightlessModel(ModelSpec(config, adapter=adapter), shards=devices)
    buffers = sum(buffer.nbytes for buffer in real.model.buffers())
    assert planned.trained == real.bytes_of(trained=True)
    assert planned.frozen == real.bytes_of(trained=False) + buffers
    updated = [p.to_local().numel() for p in real.model.parameters() if p.requires_grad]
    assert planned.parameters == sum(updated)


# A gradient whose rows are not shared out evenly is copied once more on a CPU, so here all are.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("adapter", [None, ADAPTER], ids=["full", "lora"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_memory_is_that_of_fsdp(devices, tied, adapter):
    config = LlamaConfig(tie_word_embeddings=tied, **SHAPE)
    real, planned = Sharded(config, adapter), WeightlessModel(ModelSpec(config, adapter=adapter), shards=devices)
    walk = Walk(ROWS, PROMPT, COMPLETION, 4 * VOCAB * ROWS * COMPLETION)
    for reductions, each in (([True], False), ([False, True], False), ([True, True], True)):
        peak = planned.train(walk, checkpointing={}, passes=len(reductions), sync_each_batch=each)
        assert peak.total == pytest.approx(real.peak(reductions), rel=0.01)
        assert all(size >= 0 for size in (*peak.parts.values(), peak.activations))


def run(**changes) -> RunSpec:
    student = ModelSpec(LlamaConfig(tie_word_embeddings=False, **SHAPE))
    settings = {"student": student, "teacher": None, "on_gpu": False, "num_processes": 4, "fsdp": True}
    return RunSpec(
        **settings | {"per_device_train_batch_size": 2, "prompt_length": 20, "max_new_tokens": 12} | changes
    )


def test_items_of_the_student_are_shared_out_and_those_of_the_teacher_are_not():
    teacher = ModelSpec(LlamaConfig(**SHAPE))
    sharded, whole = (plan_memory(run(teacher=teacher, fsdp=fsdp), gpus=()) for fsdp in (True, False))
    for name in ("trained weights", "optimizer state", "gradients"):
        share = sharded.phases["optimizer"][name] / whole.phases["optimizer"][name]
        assert share == pytest.approx(1 / 4, rel=0.001)
    assert sharded.phases["teacher"]["teacher weights"] == whole.phases["teacher"]["teacher weights"] > 0
    assert not sharded.phases["student"]["DDP buckets"]
    # Head and last norm stay gathered after a rollout, and are in shards when the optimizer works.
    gathered = {name: items["gathered weights"] for name, items in sharded.phases.items()}
    assert gathered["teacher"] == 4 * 256 * (20_000 + 1)
    assert gathered["rollout"] > gathered["teacher"] > gathered["optimizer"] == 0
    assert (sharded.to_dict()["fsdp"], whole.to_dict()["fsdp"]) == (True, False)
    assert any("and all of the teacher" in note for note in sharded.notes)
    assert not any("DDP" in note for note in sharded.notes)


def test_what_is_trained_is_kept_in_full_precision_and_gathered_in_half():
    config = LlamaConfig(tie_word_embeddings=False, **SHAPE)
    half, full = (
        plan_memory(run(student=ModelSpec(config, torch.bfloat16), autocast=dtype), gpus=()).phases
        for dtype in (torch.bfloat16, None)
    )
    assert half["optimizer"]["trained weights"] == 2 * full["optimizer"]["trained weights"]
    assert half["teacher"]["gathered weights"] == full["teacher"]["gathered weights"] > 0


def test_4_bit_weights_are_whole_on_each_device():
    config = LlamaConfig(tie_word_embeddings=False, **SHAPE)
    spec = ModelSpec(config, torch.bfloat16, bits=4, adapter=ADAPTER)
    alone, shared = (WeightlessModel(spec, torch.bfloat16, shards=count) for count in (1, 4))
    quantized = sum(p.nbytes for p in alone._model.parameters() if p.dtype == torch.uint8)
    rest = alone.frozen - quantized
    assert quantized < shared.frozen < quantized + rest / 3
    assert shared.trained == pytest.approx(alone.trained / 4, rel=0.01)
    notes = plan_memory(run(student=spec, autocast=torch.bfloat16), gpus=()).notes
    assert "Weights in 4 bits are not sharded: each device holds all of them." in notes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 1}, "`fsdp` shards the student over several devices, but `num_processes` is 1"),
        ({"optim": "adamw_bnb_8bit"}, "is one of bitsandbytes, whose optimizers do not update sharded parameters"),
        ({"student": ModelSpec(LlamaConfig(**SHAPE), bits=8, adapter=ADAPTER)}, "a student in 8 bits is not known"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        run(**changes)


def test_gradients_between_micro_batches():
    plans = [plan_memory(run(gradient_accumulation_steps=2, sync_each_batch=each), gpus=()) for each in (False, True)]
    whole, shared = (plan.phases["student"]["gradients"] for plan in plans)
    assert whole > 3 * shared
    assert ["sync_each_batch" in " ".join(plan.notes) for plan in plans] == [True, False]
