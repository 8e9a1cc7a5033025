"""The arithmetic of large layouts: known totals, the counting of `trl-xtok plan`, and the tables of the page."""

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig

from examples.benchmarks import layouts
from examples.benchmarks.layout_models import MODELS, Shape, find_model
from examples.benchmarks.layout_steps import LAYOUTS, Assumptions, Layout, Plan, step_time
from examples.benchmarks.layout_students import FULL, LORA, student_memory, with_more_shards
from trl_xtok.errors import ModelError
from trl_xtok.planning.models import ModelSpec
from trl_xtok.planning.plan import plan_memory
from trl_xtok.planning.run_spec import RunSpec


PAGES = "".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").glob("bigger*.md"))
PLAN = Plan(MODELS["Llama-3.1-8B"], MODELS["Qwen2.5-72B"])
BATCHES = [256, 1024]


@pytest.mark.parametrize(("name", "parameters", "kv_bytes"), [
    ("Llama-3.2-1B", 1_235_814_400, 2**15),
    ("Llama-3.2-3B", 3_212_749_824, 7 * 2**14),
    ("Llama-3.1-8B", 8_030_261_248, 2**17),
    ("Qwen2.5-14B", 14_770_033_664, 3 * 2**16),
    ("Qwen2.5-32B", 32_763_876_352, 2**18),
    ("Qwen3-32B", 32_762_123_264, 2**18),
    ("Llama-3.1-70B", 70_553_706_496, 5 * 2**16),
    ("Qwen2.5-72B", 72_706_203_648, 5 * 2**16),
])  # fmt: skip
def test_totals_are_the_published_ones(name, parameters, kv_bytes):
    assert (MODELS[name].parameters, MODELS[name].kv_bytes()) == (parameters, kv_bytes)


def test_operations_are_two_per_weight_and_what_attention_adds():
    shape = Shape("small", 10, 4, 8, 2, 2, num_key_value_heads=1, head_dim=2)
    weights = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 8)
    assert (shape.linear, shape.forward_flops(0), shape.forward_flops(0, head=False)) == (
        *(weights, 2 * (weights + 10 * 4), 2 * weights),
    )
    # Two layers, two heads of width two: a product with the key and one with the value of each earlier token.
    assert shape.forward_flops(5) - shape.forward_flops(0) == 2 * 2 * (2 * 2 + 2 * 2) * 5


def test_the_memory_of_a_student_is_that_of_the_plan():
    shape = Shape("small", 512, 64, 128, 3, 4, num_key_value_heads=2, head_dim=16)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
    )
    adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    run = RunSpec(
        ModelSpec(config, torch.bfloat16, adapter=adapter),
        # Its weights are no part of what is compared.
        teacher=ModelSpec(config, torch.bfloat16),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        prompt_length=64,
        max_new_tokens=96,
        autocast=torch.bfloat16,
        num_processes=2,
    )
    planned = plan_memory(run, ()).phases["student"]
    counted = student_memory(shape, LORA, rows=2, prompt=64, completion=96)
    assert counted["frozen weights"] == planned["student weights"]
    for name in ("trained weights", "optimizer state", "gradients", "DDP buckets"):
        assert counted[name] == planned[name] > 0
    assert counted["activations and loss blocks"] == planned["activations"] + planned["loss blocks"]


@pytest.mark.parametrize("training", [LORA, FULL], ids=lambda training: training.label)
def test_the_memory_of_a_sharded_student_is_that_of_more_gpus(training):
    shape = Shape("small", 512, 64, 128, 3, 4, num_key_value_heads=2, head_dim=16)
    few, many = (student_memory(shape, training, rows=2, prompt=64, completion=96, shards=n) for n in (4, 16))
    # Buffers are not shared out.
    assert with_more_shards(few, 4) == pytest.approx(many, rel=0.02, abs=100)
    assert with_more_shards(few, 1) == pytest.approx(few)
    assert many["trained weights"] < few["trained weights"] / 3


def test_twice_the_gpus_halve_what_can_be_shared_out():
    few, many = LAYOUTS[0], Layout(is_fp8=False, tensor_parallel=4, servers=2, student=8)
    slow, fast = step_time(PLAN, few, 256), step_time(PLAN, many, 256)
    assert (fast.scoring, fast.training) == (slow.scoring / 2, slow.training / 2)
    # One token after the other.
    floor = PLAN.completion * PLAN.student.weight_bytes() / (PLAN.assumed.bandwidth * PLAN.assumed.decode_share)
    assert floor < fast.rollouts < slow.rollouts
    assert fast.weights == slow.weights


def test_layouts_are_of_8_to_64_gpus():
    assert {layout.gpus for layout in LAYOUTS} == {8, 16, 32, 64}


@pytest.mark.parametrize("name", ["models", "moved", "memory", "traffic", "steps", "assumed"])
def test_a_table_of_the_page_is_the_one_that_is_printed(name):
    assert all(table in PAGES for table in layouts.tables(PLAN, [name], BATCHES).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["students", "sharded"])
def test_the_table_of_students_is_the_one_that_is_printed(name):
    (table,) = layouts.tables(PLAN, [name], BATCHES).values()
    assert table in PAGES


def test_numbers_of_ones_own(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine" / "config.json"
    path.parent.mkdir()
    shape = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    path.write_text(json.dumps({**shape, "model_type": "llama", "num_attention_heads": 32, "num_key_value_heads": 8}))
    assert find_model(str(path)).parameters == MODELS["Llama-3.1-8B"].parameters

    def printed(*argv: str) -> str:
        monkeypatch.setattr(sys, "argv", ["layouts", "--tables", "steps", *argv])
        layouts.main()
        return capsys.readouterr().out

    assert printed("--student", str(path)) == printed()
    slower = Assumptions(train_mfu=0.175)
    (table,) = layouts.tables(Plan(PLAN.student, PLAN.teacher, assumed=slower), ["steps"], [8]).values()
    assert table in printed("--assume", "train_mfu=0.175", "--batch", "8")
    for argv, error in (
        (("--assume", "mfu=1"), "nothing called mfu is assumed"),
        (("--batch", "0"), "argument --batch: '0' is no whole number of at least 1"),
        (("--student", "Qwen2.5-32B"), "has no room for the keys and values of a text of 2048 tokens"),
    ):
        with pytest.raises(SystemExit):
            printed(*argv)
        assert error in capsys.readouterr().err


def test_a_model_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"'Llama-4' is neither a `config.json` nor one of Llama-3.2-1B"):
        find_model("Llama-4")
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(ModelError, match=r"of type 'mixtral'\. Known are"):
        find_model(str(tmp_path / "config.json"))
