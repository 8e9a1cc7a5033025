"""What a plan says, on configurations of small models."""

import io
from dataclasses import replace

import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft import LoraConfig
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen3MoeConfig

from trl_xtok.errors import ConfigError, ModelError
from trl_xtok.planning.gpus import GIB, GPU, find_gpu
from trl_xtok.planning.models import ModelSpec, quantized
from trl_xtok.planning.phases import WeightlessModel
from trl_xtok.planning.plan import ITEMS, plan_memory
from trl_xtok.planning.plan_table import print_plan
from trl_xtok.planning.run_spec import RunSpec


SHAPE = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 1000}
STUDENT, TEACHER = LlamaConfig(tie_word_embeddings=True, **SHAPE), Qwen2Config(**SHAPE)
LORA = LoraConfig(r=8, task_type="CAUSAL_LM")


def run(**changes) -> RunSpec:
    settings = {"student": ModelSpec(STUDENT), "teacher": ModelSpec(TEACHER), "on_gpu": False}
    settings |= {"per_device_train_batch_size": 2, "prompt_length": 20, "max_new_tokens": 12}
    return RunSpec(**settings | changes)


def peak(**changes) -> int:
    return plan_memory(run(**changes), gpus=()).peak


def test_weights_are_those_of_the_real_model():
    real = sum(parameter.nbytes for parameter in LlamaForCausalLM(STUDENT).parameters())
    model = WeightlessModel(ModelSpec(STUDENT))
    assert model.trained == real
    assert 0 < model.frozen < 1000  # the frequencies of the rotary embedding


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_take_what_bitsandbytes_takes(double):
    linear = torch.randn(192, 64)
    data, state = quantize_4bit(linear, quant_type="nf4", compress_statistics=double)
    real = data.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    config = LlamaConfig(**SHAPE | {"num_hidden_layers": 1})
    spec = ModelSpec(config, adapter=LORA)
    whole = WeightlessModel(spec)
    small = WeightlessModel(quantized(spec, {"load_in_4bit": True, "bnb_4bit_use_double_quant": double}))
    # The gate, up and down matrices are of this shape; the attention's four are 64x64, 32x64, 32x64 and 64x64.
    attention = [quantize_4bit(torch.randn(size, 64), compress_statistics=double) for size in (64, 32, 32, 64)]
    rest = sum(d.nbytes + s.absmax.nbytes + (s.state2.absmax.nbytes if double else 0) for d, s in attention)
    assert small.frozen == whole.frozen - 4 * (3 * 192 * 64 + 192 * 64) + 3 * real + rest
    assert small.trained == whole.trained


def test_what_trains_decides_over_gradients_and_optimizer_state():
    full, lora = (plan_memory(run(student=ModelSpec(STUDENT, adapter=a)), gpus=()) for a in (None, LORA))
    for plan in (full, lora):
        items = plan.phases["optimizer"]
        assert items["optimizer state"] == 2 * items["trained weights"] == 2 * items["gradients"]
    assert lora.phases["optimizer"]["gradients"] < full.phases["optimizer"]["gradients"] / 10


def test_every_byte_of_a_phase_is_in_an_item():
    plan = plan_memory(run(on_gpu=True, objective="prefix_jsd", num_processes=2), gpus=())
    for items in plan.phases.values():
        assert tuple(items) == ITEMS
        assert all(size >= 0 for size in items.values())
    assert plan.peak == max(plan.totals.values())
    assert plan.phases["student"]["teacher states"] == 2 * 12 * 64 * 4
    assert plan.phases["student"]["DDP buckets"] == plan.phases["optimizer"]["gradients"] > 0
    assert any("DDP" in note for note in plan.notes)
    assert any("not run on real hardware" in note for note in plan.notes)


def test_an_offloaded_teacher_has_said_all_of_a_step_before_the_student_trains():
    def states(**changes) -> int:
        spec = run(objective="prefix_jsd", gradient_accumulation_steps=4, **changes)
        return plan_memory(spec, gpus=()).phases["student"]["teacher states"]

    assert states() == 2 * (2 * 12 * 64 * 4)
    assert states(offload_teacher=True) == 4 * (2 * 12 * 64 * 4)


def test_checkpointing_offloading_and_smaller_groups_save_memory():
    long = {"prompt_length": 200, "max_new_tokens": 50}
    assert peak(**long) < peak(**long, gradient_checkpointing=None)
    by_phase = [plan_memory(run(offload_teacher=away), gpus=()).totals["student"] for away in (False, True)]
    assert by_phase[1] < by_phase[0]
    rollouts = [plan_memory(run(generation_batch_size=size), gpus=()).phases["rollout"] for size in (8, 2)]
    assert rollouts[0]["KV cache"] == 4 * rollouts[1]["KV cache"] > 0


def test_a_teacher_behind_a_server_takes_nothing():
    plan = plan_memory(run(teacher=None), gpus=())
    assert not any(items["teacher weights"] for items in plan.phases.values())
    assert plan.phases["student"]["activations"] == plan_memory(run(), gpus=()).phases["student"]["activations"]
    assert "The teacher is behind a server, and takes no memory here." in plan.notes


def test_autocast_halves_activations_and_copies_weights():
    plain, half = (plan_memory(run(autocast=dtype), gpus=()).phases["student"] for dtype in (None, torch.bfloat16))
    assert plain["trained weights"] == half["trained weights"]
    assert plain["activations"] != half["activations"]


def test_the_largest_batch_fits_and_one_more_does_not():
    small = GPU("small", 0.06)
    asked = run(student=ModelSpec(STUDENT, adapter=LORA), block_size=8, gradient_checkpointing=None)
    largest = plan_memory(asked, [small]).largest_batch["small"]
    needs = [
        plan_memory(replace(asked, per_device_train_batch_size=size), gpus=()).peak for size in (largest, largest + 1)
    ]
    assert largest > 32
    assert needs[0] <= small.bytes < needs[1]


def test_nothing_fits_where_the_weights_do_not():
    assert plan_memory(run(), [GPU("tiny", 0.0001)]).largest_batch == {"tiny": 0}


def test_cards_are_found_by_name():
    assert find_gpu("t4").gib * GIB == find_gpu("T4").bytes
    with pytest.raises(ConfigError, match="No graphics card is called 'RTX' here"):
        find_gpu("RTX")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_length": 0}, "`prompt_length` must be at least 1, got 0"),
        ({"teacher_ratio": 0.0}, "`teacher_ratio` must be positive, got 0.0"),
        ({"optim": "magic"}, "The memory of `optim='magic'` is not known"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        run(**changes)


def test_a_foreign_quantization_is_refused():
    config = LlamaConfig(**SHAPE, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantized with 'gptq'"):
        quantized(ModelSpec(config), None)


def test_a_configuration_that_contradicts_itself_is_refused():
    with pytest.raises(ModelError, match="Either its configuration contradicts itself"):
        peak(teacher=ModelSpec(Qwen2Config(**SHAPE | {"num_key_value_heads": 32})))


def test_experts_are_refused():
    config = Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    with pytest.raises(ModelError, match="a router chooses experts"):
        peak(teacher=ModelSpec(config))


def test_it_fits_a_terminal():
    console = Console(width=80, record=True, file=io.StringIO())
    print_plan(plan_memory(run()), console)
    text = console.export_text()
    assert "H100" in text
    assert max(map(len, text.splitlines())) <= 80


def test_without_sampling_here_there_is_no_cache():
    here, elsewhere = (plan_memory(run(samples=samples), gpus=()).phases for samples in (True, False))
    assert here["rollout"]["KV cache"] > elsewhere["rollout"]["KV cache"] == 0
    assert {name: here[name] for name in ("teacher", "student", "optimizer")} == {
        name: elsewhere[name] for name in ("teacher", "student", "optimizer")
    }
