"""Several teachers with tokenizers of their own: what each row is scored by, and what is refused."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.training.fixed_rollouts import FixedTrainer, loss_and_gradients, rollouts, whole_step
from tests.training.tiny_models import PROMPTS, tiny_args, tiny_trainer
from trl_xtok.alignment.token_bytes import token_bytes
from trl_xtok.errors import ConfigError, DataError
from trl_xtok.training.aligning import WindowAligner
from trl_xtok.training.metrics import RunMetrics


ROWS = [{"prompt": prompt, "teacher": name} for prompt, name in zip(PROMPTS, ["books", "code"] * 4, strict=True)]


@pytest.fixture
def build(tmp_path, padded_student_path, teacher_path, qwen_teacher_path):
    teachers = {"books": teacher_path, "code": qwen_teacher_path}

    def build_trainer(only=None, rows=ROWS, teacher=teachers, tokenizers=None, **changes):
        trainer = tiny_trainer(
            padded_student_path,
            teacher if only is None else teacher[only],
            tiny_args(tmp_path, **changes),
            trainer_class=FixedTrainer,
            train_dataset=Dataset.from_list(rows),
            teacher_processing_class=tokenizers,
        )
        trainer.rollouts = rollouts()
        return trainer

    return build_trainer


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize(
    ("weights", "options"),
    [
        (None, {"objective": "chunk_jsd"}),
        ({"code": 0.25}, {"max_lookahead": 1e-5, "credit": "additive", "dropped_advantage": "0"}),
    ],
)
def test_each_row_as_its_teacher_alone_would_score_it(build, batch_size, weights, options):
    expected, total, trained = {}, torch.zeros(()), 0
    for name in ("books", "code"):
        alone, rows = build(name, **options), [row for row in ROWS if row["teacher"] == name]
        count = whole_step(alone, rows, batch_size)[1]
        loss, gradients = loss_and_gradients(alone, rows, batch_size)
        share = count * (weights or {}).get(name, 1.0)
        total, trained = total + share * loss, trained + count
        for parameter, gradient in gradients.items():
            expected[parameter] = expected.get(parameter, 0) + share * gradient
    loss, gradients = loss_and_gradients(build(teacher_weights=weights, **options), ROWS, batch_size)
    torch.testing.assert_close(loss, total / trained, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, expected[parameter] / trained, atol=1e-5 * scale, rtol=1e-4)


def test_a_run_with_its_logs_evaluation_and_files(build, tmp_path):
    evaluation = Dataset.from_list(ROWS[::-1])
    trainer = build(max_steps=2, per_device_train_batch_size=4, log_completions=True, save_strategy="no")
    trainer.rollouts = None
    trainer.train()
    assert set(trainer.evaluate(evaluation)) >= {"eval_loss", "eval_xtok/coverage"}
    start = json.loads(Path(tmp_path, "run_history.jsonl").read_text().splitlines()[0])
    assert "gemma3_text, qwen2" in json.dumps(start)
    spellings = [token_bytes(each).spell_all for each in (real_tokenizers.mistral1(), real_tokenizers.qwen3())]
    chunks = pq.read_table(next(Path(tmp_path, "completions").glob("chunks_*.parquet"))).to_pylist()
    spelled_by = {
        tuple(row["teacher_tokens"] == spell(row["teacher_ids"]) for spell in spellings)
        for row in chunks
        if len(row["teacher_ids"]) > 2
    }
    assert {(True, False), (False, True)} <= spelled_by
    trainer.create_model_card()
    assert "The teachers were `" in Path(tmp_path, "README.md").read_text()


def test_they_may_be_named_in_the_arguments(build, teacher_path, qwen_teacher_path):
    named = {"books": teacher_path, "code": qwen_teacher_path}
    loss, _ = loss_and_gradients(build(), ROWS, 4)
    assert loss_and_gradients(build(teacher=None, teacher_model_name_or_path=named), ROWS, 4)[0] == loss


def test_each_has_its_servers_its_name_there_and_its_key(build, load, teacher_path, qwen_teacher_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-all")
    monkeypatch.setenv("VLLM_API_KEY_CODE", "sk-code")
    loss, _ = loss_and_gradients(build(), ROWS, 4)
    with (
        ModelServer(load(teacher_path), real_tokenizers.mistral1(), names=("other", "base")) as books,
        ModelServer(load(qwen_teacher_path), real_tokenizers.qwen3(), names=("only",)) as code,
    ):
        urls = {"books": books.url, "code": [code.url]}
        served = build(teacher_server_url=urls, teacher_server_model={"books": "base"})
        torch.testing.assert_close(loss_and_gradients(served, ROWS, 4)[0], loss, atol=1e-4, rtol=1e-4)
        for server, key, name in ((books, "sk-all", "base"), (code, "sk-code", "only")):
            assert {request.headers["Authorization"] for request in server.requests} == {f"Bearer {key}"}
            assert {request.json["model"] for request in server.requests if request.json} == {name}


def test_a_key_that_would_go_to_two_of_them_is_refused(build, teacher_path, monkeypatch):
    urls = {"a-b": "http://127.0.0.1:1", "a.b": "http://127.0.0.1:2"}
    monkeypatch.setenv("VLLM_API_KEY_A_B", "sk-own")
    with pytest.raises(ConfigError, match=r"VLLM_API_KEY_A_B stands for .* both 'a-b' and 'a\.b'") as caught:
        build(teacher=dict.fromkeys(urls, teacher_path), teacher_server_url=urls)
    assert "sk-own" not in str(caught.value)


def test_one_that_no_row_names_is_refused(build):
    with pytest.raises(DataError, match="No row of `train_dataset` has 'code' in its `teacher` column"):
        build(rows=ROWS[::2])


def test_rows_without_the_column_are_refused(build):
    with pytest.raises(DataError, match="A row has prompt, but no `teacher` column, but the teachers are books, code"):
        build(rows=[{"prompt": "Hi"}])


def test_rows_with_a_list_of_teachers_are_refused(build):
    with pytest.raises(DataError, match=r"A row has \['books'\] in its `teacher` column"):
        build(rows=[{"prompt": "Hi", "teacher": ["books"]}])


@pytest.mark.parametrize("teacher", ["poems", None])
def test_a_row_without_one_of_them_is_refused(build, teacher):
    """Also among many, of which only the longest are tokenized before the first step."""
    rows = [{"prompt": "A prompt that is longer than the other", "teacher": "code"}] * 80
    with pytest.raises(DataError, match=rf"Row 70.*{teacher!r} in its `teacher` column.*books, code"):
        build(rows=[*rows[:70], {"prompt": "Hi", "teacher": teacher}, *rows[70:]])


def test_the_longest_prompts_of_each_teacher_are_tokenized(build):
    """A prompt of 200 tokens is too long with `max_length=128`, and there are longer ones of the other teacher."""
    rows = [{"prompt": "word " * 100, "teacher": "code"}] * 40 + [{"prompt": "1" * 200, "teacher": "books"}]
    with pytest.raises(DataError, match=r"Row 40.*A prompt has 200 student tokens"):
        build(rows=rows)


def test_a_collator_of_ones_own_must_name_them(build):
    trainer = build()
    batch = trainer.data_collator(ROWS[:2])
    del batch["teacher_numbers"]
    with pytest.raises(DataError, match=r"There are 2 teachers, but a batch holds prompts, .*no `teacher_numbers`"):
        WindowAligner(trainer.aligners, [batch], RunMetrics())


AWAY = {"books": "http://127.0.0.1:9"}
LOADING = ({"load_teacher_in_4bit": True}, {"teacher_model_init_kwargs": {"dtype": "float32"}})


@pytest.mark.parametrize("loading", LOADING, ids=str)
def test_how_to_load_a_teacher_is_refused_if_none_is_loaded(build, tmp_path, loading):
    urls = dict.fromkeys(("books", "code"), "http://127.0.0.1:9")
    # The second teacher is loaded here.
    assert tiny_args(tmp_path, teacher_server_url={"books": urls["books"]}, **loading)
    with pytest.raises(ConfigError, match=f"`{next(iter(loading))}.*teacher_server_url"):
        build(teacher_server_url=urls, **loading)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"objective": "prefix_jsd"},
            "`objective='prefix_jsd'` is defined for one teacher, but there are 2: books, code",
        ),
        ({"seq_kd": True, "lmbda": 0.5, "objective": "chunk_jsd"}, "`seq_kd=True` is defined for one teacher"),
        ({"teacher_weights": {"poems": 1.0}}, r"`args.teacher_weights` is \['poems'\], but .* names: books, code"),
        ({"teacher_server_url": "http://127.0.0.1:9"}, "`args.teacher_server_url` is list, but .* must be a dict"),
        ({"teacher": {"books": None}}, "Of the teachers books, 'books' is None"),
        ({"teacher_model_name_or_path": {"a": "b"}}, r"`args.teacher_model_name_or_path={'a': 'b'}` both say which"),
        ({"teacher_model_name_or_path": "b"}, r"`args.teacher_model_name_or_path='b'` both say which"),
        ({"only": "books", "teacher_model_name_or_path": {"a": "b"}}, "both say which teachers there are"),
        (
            {"teacher_model_name_or_path": {"a": ["b"]}},
            r"`teacher_model_name_or_path` has \['b'\] for 'a', which must",
        ),
        (
            {"teacher_server_url": AWAY, "teacher_server_model": {"books": 5}},
            "has 5 for 'books', which must be one name",
        ),
        (
            {"teacher_server_url": AWAY, "teacher_server_model": {"code": "x"}},
            "`teacher_server_model` is a dictionary with 'code', but `teacher_server_url` has addresses for books",
        ),
        ({"teacher": {}}, r"The teachers are named \[\]"),
        ({"only": "books", "teacher_weights": {"books": 1.0}}, "which is for several teachers, but"),
        ({"only": "books", "teacher_server_url": {"books": "http://127.0.0.1:9"}}, "which is for several teachers"),
        ({"teacher_weights": {"books": -1.0}}, "`teacher_weights` has -1.0 for 'books'"),
        ({"teacher_weights": {"books": 0.0, "code": 0}}, r"`teacher_weights` is 0 for every teacher \(books, code\)"),
    ],
)
def test_what_names_do_not_fit_is_refused(build, changes, match):
    with pytest.raises(ConfigError, match=match):
        build(**changes)
