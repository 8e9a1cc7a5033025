"""Rollouts through TRL's `VLLMGeneration`, which needs CUDA and vLLM: what it is called with, and what it returns."""

import inspect

import pytest
from trl import DistillationConfig
from trl.generation.vllm_generation import VLLMGeneration

from tests.training.fixed_rollouts import whole_step
from tests.training.tiny_models import PROMPTS
from trl_xtok.errors import ServerError
from trl_xtok.training import engine_arguments, engine_rollouts
from trl_xtok.training.scoring import causal_lm, completion_logps, pack


class Engine:
    """Stands in for `VLLMGeneration`: it writes the beginning of the prompt again.

    Attributes:
        said: What its log-probs differ by from those of the student.
    """

    calls: list[str]
    said = 0.0

    def __init__(self, **arguments):
        # The real signature takes them, by these names.
        inspect.signature(VLLMGeneration.__init__).bind(self, **arguments)
        type(self).arguments, type(self).calls = arguments, []

    def sync_weights(self):
        self.calls.append("sync")

    def generate(self, **arguments):
        inspect.signature(VLLMGeneration.generate).bind(self, **arguments)
        assert (arguments["images"], arguments["num_generations"]) == (None, 1)
        self.calls.append("generate")
        prompts = arguments["prompts"]
        completions = [prompt[:3] for prompt in prompts]
        model = causal_lm(self.arguments["model"])
        logps = completion_logps(model, pack(prompts, completions, model.device)) + self.said
        rows = logps.split([len(ids) for ids in completions])
        # The shape that its docstring promises for `logprobs=0`.
        logps_by_token = [[[value] for value in row.tolist()] for row in rows]
        return prompts, completions, logps_by_token, [[[token] for token in ids] for ids in completions]


@pytest.fixture
def make(make_trainer, monkeypatch):
    monkeypatch.setattr(engine_arguments, "_what_lacks", lambda: "")
    monkeypatch.setattr(engine_rollouts, "VLLMGeneration", Engine)

    def build(**changes):
        return make_trainer(use_vllm=True, **changes)

    return build


def test_trl_gets_what_the_arguments_say(make):
    trainer = make(vllm_gpu_memory_utilization=0.5, vllm_max_model_length=77, vllm_tensor_parallel_size=2)
    given = Engine.arguments
    assert {name: given[name] for name in ("mode", "gpu_memory_utilization", "max_model_length")} == {
        "mode": "colocate",
        "gpu_memory_utilization": 0.5,
        "max_model_length": 77,
    }
    assert given["max_num_seqs"] == 4
    assert (given["temperature"], given["max_completion_length"]) == (1.0, 6)
    assert given["generation_kwargs"]["stop_token_ids"] == [trainer.generation_config.eos_token_id]
    # Left out are an argument that changes what is sampled, and those that a caller of TRL does not give either.
    theirs = set(inspect.signature(VLLMGeneration.__init__).parameters) - {"self", "structured_outputs_regex"}
    assert set(given) == theirs


def test_a_server_is_named_to_trl(make):
    make(vllm_mode="server", vllm_weight_sync="nccl", vllm_server_host="gpu1", vllm_group_port=5, vllm_server_port=81)
    assert (Engine.arguments["server_host"], Engine.arguments["server_port"]) == ("gpu1", 81)
    assert (Engine.arguments["mode"], Engine.arguments["group_port"]) == ("server", 5)
    assert DistillationConfig.__dataclass_fields__["vllm_server_host"].default == "0.0.0.0"


def test_weights_are_sent_before_each_window_and_ids_are_kept(make):
    trainer = make()
    batches, _ = whole_step(trainer, PROMPTS, batch_size=8)
    assert Engine.calls == ["sync", "generate"]
    for rollout in batches[0]["micro_batch"].rollouts:
        assert rollout.completion_ids == rollout.prompt_ids[:3]


def test_an_engine_with_other_weights_is_found_out(make, monkeypatch):
    monkeypatch.setattr(Engine, "said", 1.0)
    with pytest.raises(ServerError, match=r"differ from the student's by 1 nats on average"):
        whole_step(make(), PROMPTS, batch_size=8)
