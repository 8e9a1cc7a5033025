"""A teacher behind a server: the same step as with a local one, and what happens when something is wrong with it."""

import json
from pathlib import Path

import pytest
import torch

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.serving.stub_server import Reply
from tests.training.fixed_rollouts import rollouts, train_one_step, without_times
from tests.training.runs import logged
from tests.training.tiny_models import PROMPTS, prompt_dataset, tiny_args
from trl_xtok.errors import ConfigError, ServerError, TokenizerError
from trl_xtok.training.server_arguments import check_served
from trl_xtok.training.trl_compat import TeacherStandIn


def assert_same_step(one, other):
    one_log, other_log = without_times(one.logged), without_times(other.logged)
    assert one_log == pytest.approx(other_log, abs=1e-4)
    assert one.gradients.keys() == other.gradients.keys()
    # The divergences of random models are small.
    largest = max(gradient.abs().max().item() for gradient in one.gradients.values())
    assert largest > 1e-6
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(gradient, other.gradients[name], atol=largest * 1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"segmentation": "text", "credit": "chunk", "advantage_baseline": "mean"},
        {"objective": "chunk_jsd", "beta": 0.5, "temperature": 0.7, "scoring_temperature": 1.0},
    ],
    ids=["credited", "compared"],
)
def test_a_step_is_that_with_a_local_teacher(padded_student_path, teacher_path, server, tmp_path, changes):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **changes}
    models = padded_student_path, teacher_path, str(tmp_path), rollouts()
    local = train_one_step(*models, **settings)
    served = train_one_step(*models, teacher_server_url=server.url, **settings)
    assert_same_step(served, local)
    assert server.scored


def test_one_vocabulary_is_trained_on_chunks(make_trainer, same_tokenizer_teacher_path, load):
    """Of whole distributions a server says nothing."""
    model = load(same_tokenizer_teacher_path)
    with ModelServer(model, real_tokenizers.smollm2()) as server:
        trainer = make_trainer(teacher=same_tokenizer_teacher_path, teacher_server_url=[server.url])
        assert trainer.objective.name == "chunk_rkl"
        trainer.train()
        assert logged(trainer)[0]["xtok/dropped_unfinished"] == 0.0


def test_no_weights_are_loaded(served, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-very-secret")
    tokenizer = {"teacher_processing_class": real_tokenizers.mistral1()}
    trainer = served(teacher=None, arguments=tokenizer, save_strategy="steps", save_steps=1)
    assert isinstance(trainer.teacher_model, TeacherStandIn)
    assert not list(trainer.teacher_model.parameters())
    trainer.train()
    trainer.create_model_card()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"very-secret" not in written
    assert b"someone/teacher" in (tmp_path / "README.md").read_bytes()
    (start, *_) = map(json.loads, (tmp_path / "run_history.jsonl").read_text().splitlines())
    assert start["start"]["teacher"] == {"name": "someone/teacher", "architecture": "served"}
    assert "127.0.0.1" not in json.dumps(start)


def test_a_folder_with_a_tokenizer_will_do(served, tmp_path):
    real_tokenizers.mistral1().save_pretrained(tmp_path / "tokenizer")
    trainer = served(teacher=str(tmp_path / "tokenizer"), max_length=None)
    assert (trainer.teacher.config.vocab_size, trainer.teacher.config.max_position_embeddings) == (32000, 255)
    trainer.train()


def test_the_shorter_context_counts(make_trainer, teacher):
    says = "The teacher reads at most 7 tokens, and `max_new_tokens=8`"
    with (
        ModelServer(teacher, real_tokenizers.mistral1(), max_model_len=8) as server,
        pytest.raises(ConfigError, match=says),
    ):
        make_trainer(teacher_server_url=server.url, max_new_tokens=8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"objective": "exact_jsd"}, "`objective='exact_jsd'` needs whole distributions"),
        ({"objective": "shared_vocab_jsd"}, "`objective='shared_vocab_jsd'` needs"),
        ({"objective": "hybrid"}, "`objective='hybrid'` needs"),
        ({"objective": "prefix_jsd"}, "`objective='prefix_jsd'` needs"),
        ({"objective": "chunk_rkl", "advantage_baseline": "position"}, "`advantage_baseline='position'` needs"),
        ({"seq_kd": True, "lmbda": 0.5, "crossentropy_weight": 1.0}, "`seq_kd=True` has the teacher write"),
        ({"load_teacher_in_4bit": True}, "`load_teacher_in_4bit=True` quantizes"),
        ({"teacher_quantization_config": {"load_in_4bit": True}}, "`teacher_quantization_config=.*quantizes"),
        ({"teacher_model_init_kwargs": {"dtype": "bfloat16"}}, "`teacher_model_init_kwargs` has 'dtype'"),
        ({"temperature": 0.7}, "`temperature=0.7` is the temperature that both models are scored at"),
        ({"scoring_temperature": 0.7, "objective": "chunk_jsd"}, "`scoring_temperature=0.7` is"),
        ({"teacher_server_timeout": 0}, "`teacher_server_timeout` must be a positive number of seconds, got 0"),
        ({"teacher_server_timeout": True}, "`teacher_server_timeout` must be"),
        ({"teacher_server_max_concurrency": 0}, "`teacher_server_max_concurrency` must be"),
        ({"teacher_server_model": {"books": "x"}}, "is a dictionary with 'books', but .* is for one teacher"),
        ({"teacher_server_model": 5}, "`teacher_server_model` must be the name .* got 5"),
        ({"teacher_server_url": []}, "`teacher_server_url` must be an address or a list of addresses"),
        ({"teacher_server_url": {}}, "`teacher_server_url` must be an address or a list of addresses"),
        ({"teacher_server_url": ["somewhere"]}, "'somewhere' is not the address of a server"),
        ({"teacher_server_url": None, "teacher_server_model": "x"}, "`teacher_server_model='x'` has no effect"),
        ({"teacher_server_url": None, "teacher_score_cache": "x"}, "`teacher_score_cache='x'` has no effect"),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(map(str, value)),
)
def test_what_a_server_cannot_do_is_refused_by_name(tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        tiny_args(tmp_path, **{"teacher_server_url": "http://127.0.0.1:8000"} | changes)


def test_offloading_a_served_teacher_is_refused(tmp_path):
    args = tiny_args(tmp_path, teacher_server_url="http://127.0.0.1:8000")
    # On a CPU it is refused anyway.
    args.offload_teacher = True
    with pytest.raises(ConfigError, match=r"`offload_teacher=True` moves a teacher that is loaded here"):
        check_served(args)


def test_a_loaded_teacher_beside_a_server_is_refused(served, teacher):
    with pytest.raises(ConfigError, match=r"`teacher_model` is a loaded Gemma3ForCausalLM, but with"):
        served(teacher=teacher)


def test_a_tokenizer_is_needed(server, tmp_path, student_path):
    from trl_xtok import CrossTokenizerGKDTrainer

    with pytest.raises(ConfigError, match="but its tokenizer is needed here"):
        CrossTokenizerGKDTrainer(student_path, args=tiny_args(tmp_path, teacher_server_url=server.url))


def test_another_tokenizer_is_refused(served, student_path):
    with pytest.raises(TokenizerError, match=r"The tokenizer of 'teacher' at .* makes \[.*\]… of .* given here \["):
        served(teacher=student_path)


def test_a_model_that_is_not_served_is_refused(served):
    with pytest.raises(ServerError, match="does not serve the model 'other', but 'teacher'"):
        served(teacher_server_model="other")


def test_of_several_models_one_is_named(make_trainer, teacher):
    with ModelServer(teacher, real_tokenizers.mistral1(), names=("base", "adapter")) as server:
        with pytest.raises(ServerError, match="serves 'base', 'adapter', so it is not known which"):
            make_trainer(teacher_server_url=server.url)
        make_trainer(teacher_server_url=server.url, teacher_server_model="adapter")
        assert {r.json["model"] for r in server.requests if r.json} == {"adapter"}


def test_replicas_must_have_one_model(served, server, teacher):
    with (
        ModelServer(teacher, real_tokenizers.mistral1(), names=("other",)) as second,
        pytest.raises(ServerError, match="must be replicas of one model"),
    ):
        served(url=[server.url, second.url])


def test_a_server_that_cannot_tokenize_is_taken_with_a_warning(served, server, caplog):
    server.answer = lambda request: Reply(b"", 404) if request.path == "/tokenize" else server.serve(request)
    served()
    assert "it was not checked that the tokenizer" in caplog.text


def test_a_server_that_does_not_score_is_refused_at_the_start(served, server):
    def answer(request):
        refusal = Reply({"error": {"message": "prompt_logprobs is not supported"}}, 400)
        return refusal if "completions" in request.path else server.serve(request)

    server.answer = answer
    with pytest.raises(ServerError, match="prompt_logprobs is not supported"):
        served()


def test_missing_scores_are_dropped_and_counted(served, server):
    def without_numbers(request):
        reply = server.serve(request)
        if "completions" in request.path:
            for choice in reply.body["choices"]:
                choice["prompt_logprobs"][-4] = None
        return reply

    server.answer = without_numbers
    trainer = served(max_new_tokens=8)
    trainer.train()
    assert 0 < logged(trainer)[0]["xtok/dropped_teacher"] < 1


def test_a_second_epoch_makes_no_request(served, server, tmp_path):
    """With completions of a dataset; rollouts are other ones in each epoch."""
    dataset = prompt_dataset(PROMPTS[:4]).add_column("completion", [" one", " two", " three", " four"])
    settings = {"arguments": {"train_dataset": dataset}, "objective": "chunk_jsd", "lmbda": 0.0, "max_steps": -1}
    trainer = served(**settings, num_train_epochs=3, teacher_score_cache=str(tmp_path / "scores.db"))
    probes = len(server.scored)
    trainer.train()
    assert trainer.state.global_step == 6
    assert len(server.scored) - probes == trainer.teacher.scorer.requested == 4
    again = served(**settings, num_train_epochs=1, teacher_score_cache=str(tmp_path / "scores.db"))
    again.train()
    assert again.teacher.scorer.requested == 0


def test_evaluations_ask_the_server(served, server):
    trainer = served(arguments={"eval_dataset": prompt_dataset(PROMPTS[:2])})
    before = len(server.scored)
    assert trainer.evaluate()["eval_xtok/coverage"] > 0
    assert len(server.scored) == before + 2


def test_one_address_is_a_list_of_one(tmp_path):
    args = tiny_args(tmp_path, teacher_server_url="http://127.0.0.1:8000/v1")
    assert args.teacher_server_url == ["http://127.0.0.1:8000"]
    assert Path(args.output_dir) == tmp_path


def test_micro_batches_do_not_wait_for_one_another(served, server):
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "generation_batch_size": 4}
    trainer = served(**sizes)
    server.delay = 0.2
    trainer.train()
    assert server.most_at_once == 4
