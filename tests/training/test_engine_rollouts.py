"""Rollouts from a server: it has the student's weights, its ids are trained on as they are, and it is checked."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from tests import real_tokenizers
from tests.serving.stub_server import Reply
from tests.training.engine_server import EngineServer, restarting
from tests.training.fixed_rollouts import FixedTrainer, lora, whole_step, without_times
from tests.training.tiny_models import PROMPTS, prompt_dataset, save, tiny_args, tiny_model, tiny_trainer
from trl_xtok.errors import ModelError, ServerError
from trl_xtok.training.served_student import on_its_own


@pytest.fixture(scope="module")
def tied_path(tmp_path_factory) -> str:
    """A student whose output head is its embedding."""
    tokenizer = real_tokenizers.smollm2()
    model = tiny_model("llama", len(tokenizer), tie_word_embeddings=True, seed=5)
    return save(model, tokenizer, tmp_path_factory.mktemp("tied"))


@pytest.fixture
def serve(tied_path):
    """A server with the model as it was before training; all are closed at the end."""
    servers = []

    def start(path: str = tied_path, **options) -> EngineServer:
        servers.append(EngineServer(path, **options))
        return servers[-1]

    yield start
    for server in servers:
        with suppress(OSError):
            server.close()


def engine(server: EngineServer, **changes):
    return {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_weight_sync": "reload",
        "vllm_server_base_url": server.url,
        "vllm_server_timeout": 20.0,
        **changes,
    }


@pytest.fixture
def make(tmp_path, tied_path, byteless_teacher_path):
    """A trainer whose student is in a server, too; `arguments` are the trainer's, the rest args."""

    def build(server: EngineServer, *, folder: str = "out", arguments=None, student=tied_path, **changes):
        args = tiny_args(tmp_path / folder, **engine(server, **changes))
        return tiny_trainer(student, byteless_teacher_path, args, trainer_class=FixedTrainer, **arguments or {})

    return build


@pytest.mark.parametrize("make_config", [lambda: None, lora], ids=["full", "adapter"])
def test_a_run_trains_on_what_the_server_sampled(make, serve, make_config):
    server = serve()
    trainer = make(server, max_steps=3, learning_rate=1e-2, arguments={"peft_config": make_config()})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    # Before each step, since each step changes the student.
    assert server.loaded == 3
    assert len(server.completions) == 6
    assert sorted(trainer.sampled) == sorted([*server.completions.values()][-2:])
    for log in trainer.state.log_history[:3]:
        assert log["sampling/sampling_logp_difference/mean"] <= log["sampling/sampling_logp_difference/max"] < 1e-4
        assert 0 < log["time/weight_sync"] < log["time/rollout"]
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    # Nothing is left lying about.
    assert not [*Path(trainer.args.output_dir, "vllm_weights").iterdir()]


@pytest.mark.parametrize("make_config", [lambda: None, lora], ids=["full", "adapter"])
def test_the_server_has_the_weights_of_the_student(make, serve, make_config):
    server = serve()
    trainer = make(server, arguments={"peft_config": make_config()})
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    live = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    whole_step(trainer, PROMPTS, batch_size=8)
    assert all(torch.equal(value, live[name]) for name, value in trainer.model.state_dict().items())
    ids = torch.tensor([[1, 2, 3, 4]])
    trainer.model.eval()
    with torch.no_grad():
        expected, actual = trainer.model(input_ids=ids).logits, server.model(input_ids=ids).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_tied_head_is_written_out(load, tied_path, tmp_path):
    student = load(tied_path)
    on_its_own(student).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], saved["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert student.config.tie_word_embeddings
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(load(tmp_path)(ids).logits, student(ids).logits)


def test_an_adapter_with_modules_of_its_own_is_merged(load, tied_path):
    from peft import get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["mlp"])
    student = get_peft_model(load(tied_path), config).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        torch.testing.assert_close(on_its_own(student)(ids).logits, student(ids).logits, atol=1e-4, rtol=1e-4)
    assert any("lora" in name for name, _ in student.named_parameters())


def test_half_precision_is_copied_from_a_prepared_model(make, serve):
    """Accelerate puts a forward of its own around the model, which cannot be copied everywhere."""
    server = serve()
    trainer = make(server, max_steps=2, bf16=True)
    trainer.train()
    assert server.loaded == 2
    assert 1e-4 < trainer.state.log_history[0]["sampling/sampling_logp_difference/mean"] < 0.2


def test_a_server_that_keeps_its_old_head_is_found_out(make, serve):
    trainer = make(serve(keeps_head=True), max_steps=3, learning_rate=3e-2)
    with pytest.raises(ServerError, match=r"does not sample from the student.*tied embeddings"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_another_model_is_found_out(make, serve, tied_path, tmp_path):
    server = serve()
    trainer = make(server)
    server._load = lambda path: None
    server.model = tiny_model("llama", server.model.config.vocab_size, seed=9)
    with pytest.raises(ServerError, match="another model"):
        trainer.train()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_any_stop_token_ends_a_completion_and_is_kept(make, serve, load, tied_path, temperature):
    student = load(tied_path)
    stops = {*range(0, student.config.vocab_size, 4), real_tokenizers.smollm2().eos_token_id}
    student.generation_config.eos_token_id = sorted(stops)
    server = serve()
    trainer = make(
        server,
        student=student,
        arguments={"processing_class": real_tokenizers.smollm2()},
        temperature=temperature,
        max_new_tokens=8,
    )
    batches, _ = whole_step(trainer, PROMPTS, batch_size=8)
    rollouts = batches[0]["micro_batch"].rollouts
    sampled = {prompt: ids for (prompt, _), ids in server.completions.items()}
    assert any(rollout.stopped for rollout in rollouts)
    for rollout in rollouts:
        assert rollout.completion_ids == sampled[tuple(rollout.prompt_ids)]
        assert rollout.stopped == (rollout.completion_ids[-1] in stops)


def test_the_same_prompt_is_answered_in_several_ways_and_again_in_the_same(make, serve):
    server = serve()
    trainer = make(server)

    def draw(step):
        trainer.state.global_step = step
        batches, _ = whole_step(trainer, ["The same prompt"] * 4, batch_size=4)
        return [rollout.completion_ids for rollout in batches[0]["micro_batch"].rollouts]

    first = draw(0)
    assert len({*map(tuple, first)}) == 4
    assert draw(1) != first
    assert draw(0) == first


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(make, serve):
    logs = []
    for folder, runs in (("straight", [4]), ("resumed", [2, 4])):
        for steps in runs:
            server = serve()
            torch.manual_seed(0)
            trainer = make(
                server,
                folder=folder,
                max_steps=steps,
                save_strategy="steps",
                save_steps=2,
                lr_scheduler_type="constant",
                lmbda=0.6,
                objective="chunk_jsd",
                arguments={"peft_config": lora(), "train_dataset": written()},
            )
            trainer.train(resume_from_checkpoint=steps != runs[0])
        logs.append([without_times(log) for log in trainer.state.log_history if "loss" in log])
    assert len(logs[0]) == 4
    for straight, resumed in zip(*logs, strict=True):
        del straight["num_tokens"], resumed["num_tokens"]
        assert resumed == pytest.approx(straight, abs=1e-5, rel=1e-4)
    # Both kinds of steps were taken.
    assert 0 < server.loaded < 4


def written():
    return prompt_dataset().add_column("completion", [" One two three.", " yes", " 42", " no, never"] * 2)


def test_off_policy_steps_ask_for_nothing(make, serve):
    server = serve()
    # At 0 an engine is refused.
    settings = {"lmbda": 1e-9, "objective": "chunk_jsd", "max_steps": 2}
    make(server, arguments={"train_dataset": written()}, **settings).train()
    assert (server.loaded, server.completions) == (0, {})


def test_evaluations_send_the_weights_once_and_draw_the_same_again(make, serve):
    server = serve()
    trainer = make(server, per_device_eval_batch_size=2, arguments={"eval_dataset": prompt_dataset()})
    first, second = trainer.evaluate(), trainer.evaluate()
    assert server.loaded == 2
    assert len(server.completions) == len(PROMPTS)
    assert first["eval_loss"] == pytest.approx(second["eval_loss"], abs=1e-6)
    assert first["eval_sampling/sampling_logp_difference/max"] < 1e-4


def test_a_server_that_is_restarted_while_it_samples_gets_the_weights_again(make, serve, caplog):
    settings = {"max_steps": 3, "learning_rate": 3e-2, "generation_batch_size": 1}
    straight, restarted = make(serve(), **settings), make(first := serve(), folder="restarted", **settings)
    straight.train()
    # The second completion of the second step. The first one, which is checked if it is longer, is the student's.
    servers = restarting(serve, first, [4])
    restarted.train()
    assert [server.loaded for server in servers] == [2, 2]
    assert "The engine was interrupted or started again" in caplog.text
    assert restarted.sampled == straight.sampled
    assert restarted.state.log_history[1]["loss"] == pytest.approx(straight.state.log_history[1]["loss"], abs=1e-6)


def test_a_server_that_lost_the_weights_before_the_first_completion_of_a_step_gets_them_again(make, serve, caplog):
    settings = {"max_steps": 3, "learning_rate": 3e-2}
    straight, forgetful = make(serve(), **settings), make(server := serve(), folder="forgetful", **settings)
    straight.train()
    answer, start = server.answer, server.model

    def forget(request):
        if request.path == "/v1/completions" and server.loaded == 2:
            server.model = start
        return answer(request)

    server.answer = forget
    forgetful.train()
    assert server.loaded == 4
    assert "The engine was interrupted or started again" in caplog.text
    assert forgetful.sampled == straight.sampled


def test_a_server_that_does_not_stay_up_stops_the_run(make, serve):
    trainer = make(server := serve(), max_steps=2, generation_batch_size=1)
    servers = restarting(serve, server, [*range(1, 20, 2)])
    with pytest.raises(ServerError, match="was interrupted in each of 3 attempts"):
        trainer.train()
    assert len(servers) > 3


@pytest.mark.parametrize("reads", [True, False], ids=["reads them again", "does not read them again"])
def test_a_server_that_lost_the_weights_between_batches_of_an_evaluation_gets_them_again(make, serve, caplog, reads):
    server = serve()
    trainer = make(server, per_device_eval_batch_size=4, arguments={"eval_dataset": prompt_dataset()})
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.mul_(2.0)
    answer, start = server.answer, server.model
    expected = trainer.evaluate()
    server.completions.clear()

    def forget(request):
        if len(server.completions) >= 4 and (not reads or server.loaded == 2):
            server.model = start
        return answer(request)

    server.answer = forget
    if not reads:
        with pytest.raises(ServerError, match="does not sample from the student"):
            trainer.evaluate()
        return
    metrics = trainer.evaluate()
    assert server.loaded == 3
    assert "The engine was interrupted or started again" in caplog.text
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-6)
    assert metrics["eval_sampling/sampling_logp_difference/max"] < 1e-4


def test_a_server_without_the_development_mode_stops_the_run(make, serve):
    server = serve()
    answer = server.answer
    server.answer = lambda request: Reply({}, 404) if request.path == "/collective_rpc" else answer(request)
    with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1"):
        make(server).train()


def test_no_server_is_an_error_at_the_start(make, serve):
    server = serve()
    server.close()
    with pytest.raises(ServerError, match=r"within 0\.3 seconds"):
        make(server, vllm_server_timeout=0.3)


def test_a_quantized_student_is_refused(make, serve, load, tied_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    with pytest.raises(ModelError, match="is quantized"):
        make(
            serve(),
            arguments={"peft_config": lora(), "quantization_config": BitsAndBytesConfig(load_in_4bit=True)},
        )
