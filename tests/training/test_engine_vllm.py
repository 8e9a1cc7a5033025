"""On-policy training against a real vLLM server on the CPU, with a student whose embeddings are tied."""

import copy

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.serving.vllm_server import vllm_server
from tests.training.fixed_rollouts import whole_step
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok.cli.demo_models import demo_model_path
from trl_xtok.errors import ServerError
from trl_xtok.serving.completions import CompletionServer
from trl_xtok.training import served_student
from trl_xtok.training.scoring import causal_lm, completion_logps, pack


pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def student() -> str:
    return str(demo_model_path("smollm2-135m-instruct"))


@pytest.fixture(scope="module")
def server(student, tmp_path_factory):
    with vllm_server(student, tmp_path_factory.mktemp("vllm")) as running:
        yield running


@pytest.fixture
def make(student, server, tmp_path, byteless_teacher_path):
    def build(learning_rate: float, peft_config: LoraConfig | None = None):
        args = tiny_args(
            tmp_path,
            use_vllm=True,
            vllm_mode="server",
            vllm_weight_sync="reload",
            vllm_server_base_url=server.url,
            max_steps=3,
            max_new_tokens=24,
            learning_rate=learning_rate,
        )
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
        return tiny_trainer(model, byteless_teacher_path, args, peft_config=peft_config)

    return build


@pytest.fixture
def sampled(monkeypatch):
    """What the server sampled for the last window."""
    completions, sample = [], CompletionServer.sample

    def record(self, *args):
        completions[:] = sample(self, *args)
        return [*completions]

    monkeypatch.setattr(CompletionServer, "sample", record)
    return completions


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_sampled_log_probs_are_those_of_the_trainer(make, sampled, kind):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = make(1e-3, config if kind == "LoRA" else None)
    trainer.train()
    assert trainer.state.global_step == 3
    logs = trainer.state.log_history[:3]
    assert all(log["sampling/sampling_logp_difference/max"] < 1e-3 for log in logs)

    # With the weights after the last step, every token of every completion.
    ((inputs,), _) = whole_step(trainer, PROMPTS, batch_size=8)
    rollouts = inputs["micro_batch"].rollouts
    assert [rollout.completion_ids for rollout in rollouts] == [completion.ids for completion in sampled]
    packed = pack([r.prompt_ids for r in rollouts], [r.completion_ids for r in rollouts], trainer.args.device)
    with torch.no_grad():
        own = completion_logps(causal_lm(trainer.model.eval()), packed)
    served = torch.tensor([logp for completion in sampled for logp in completion.logps])
    assert len(own) > 100
    torch.testing.assert_close(served, own, atol=1e-3, rtol=0)


def test_a_seed_draws_the_same_again(make, sampled):
    trainer = make(0.0)
    whole_step(trainer, ["The same prompt"] * 4, batch_size=4)
    first = [completion.ids for completion in sampled]
    assert len({*map(tuple, first)}) == 4
    whole_step(trainer, ["The same prompt"] * 4, batch_size=4)
    assert [completion.ids for completion in sampled] == first


def test_a_tied_copy_is_found_out(make, monkeypatch):
    """The server takes it, says that all is well, and keeps its old output head."""
    monkeypatch.setattr(served_student, "on_its_own", copy.deepcopy)
    trainer = make(1e-3)
    with pytest.raises(ServerError, match=r"does not sample from the student.*tied embeddings"):
        trainer.train()
    assert trainer.state.global_step == 1
