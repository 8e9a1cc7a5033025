"""Scoring with a stub server that has a small local model: the same numbers, nothing lost, nothing asked for twice."""

import math
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from threading import Barrier, Event

import pytest
import torch

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.serving.stub_server import Reply
from tests.training.tiny_models import tiny_args, tiny_model
from trl_xtok.errors import CacheError, ServerError
from trl_xtok.serving.models import find_model
from trl_xtok.serving.score_cache import ScoreCache
from trl_xtok.serving.scores import BackgroundScores, Completion, ServedScorer
from trl_xtok.serving.server import VLLMServer
from trl_xtok.training.served_teacher import ServedTeacher, served_config
from trl_xtok.training.teachers import LocalTeacher


VOCABULARY = 300
COMPLETIONS = [Completion(tuple((7 * row + place) % VOCABULARY for place in range(3 + row)), 2) for row in range(20)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", VOCABULARY)


@pytest.fixture
def server(model):
    with ModelServer(model, real_tokenizers.smollm2(), max_model_len=32) as server:
        yield server


@pytest.fixture(scope="module")
def clients():
    """A client costs as much as ten tests of this file."""
    made: dict[str, VLLMServer] = {}
    return lambda url: made.setdefault(url, VLLMServer(url, timeout=5.0, deadline=5.0))


@pytest.fixture
def scorer(server, clients):
    return lambda *urls, **settings: ServedScorer([*map(clients, urls or (server.url,))], "teacher", **settings)


def expected(model, completions) -> list[list[float]]:
    args = tiny_args("unused")
    pairs = [(each.ids[: each.start], each.ids[each.start :]) for each in completions]
    logps = LocalTeacher(model, args).token_logps(*zip(*pairs, strict=True))
    return [row.tolist() for row in logps.split([len(written) for _, written in pairs])]


def assert_equal(scores, wanted):
    assert [len(row) for row in scores] == [len(row) for row in wanted]
    for row, right in zip(scores, wanted, strict=True):
        assert row == pytest.approx(right, abs=1e-5, nan_ok=True)


def test_scores_are_those_of_the_model(server, scorer, model):
    assert_equal(scorer(batch_size=3, max_concurrency=1).scores(COMPLETIONS), expected(model, COMPLETIONS))
    sizes = [[len(ids) for ids in request.json["prompt"]] for request in server.requests]
    assert sorted(map(len, sizes)) == [2, 3, 3, 3, 3, 3, 3]
    assert all(max(size) - min(size) <= 2 for size in sizes), "those of a request are of similar length"


def test_all_requests_that_may_be_sent_share_what_waits(server, scorer):
    server.delay = 0.1
    scorer(batch_size=8, max_concurrency=4).scores(COMPLETIONS)
    assert [len(request.json["prompt"]) for request in server.requests] == [5, 5, 5, 5]


def test_what_is_asked_for_twice_is_sent_once(server, scorer):
    scores = scorer().scores([COMPLETIONS[3], COMPLETIONS[5], COMPLETIONS[3]])
    assert scores[0] == scores[2] != scores[1]
    assert len(server.scored) == 2


def test_nothing_to_score_asks_for_nothing(server, scorer):
    assert scorer().scores([Completion((1, 2), 2)]) == [[]]
    assert scorer().scores([]) == []
    assert not server.requests


def test_requests_stay_within_the_limit(server, scorer):
    server.delay = 0.02
    scorer(batch_size=1, max_concurrency=3).scores(COMPLETIONS)
    assert server.most_at_once == 3


def test_replicas_get_equal_shares(server, scorer, model):
    with ModelServer(model, real_tokenizers.smollm2(), max_model_len=32) as second:
        both = scorer(server.url, second.url, batch_size=2, max_concurrency=1)
        assert_equal(both.scores(COMPLETIONS), expected(model, COMPLETIONS))
        assert (len(server.requests), len(second.requests)) == (5, 5)


def test_what_comes_later_does_not_wait_for_what_is_under_way(server, scorer, model):
    both, serve = Barrier(2), server.answer

    def meet(request):
        both.wait(20)
        return serve(request)

    server.answer = meet
    background = BackgroundScores(scorer())
    for completion in COMPLETIONS[:2]:
        background.expect([completion])
    assert_equal(background.wait(COMPLETIONS[:2]), expected(model, COMPLETIONS[:2]))


def test_what_waits_for_a_request_goes_together(server, scorer, model):
    asked, go_on, serve = Event(), Event(), server.answer

    def answer(request):
        asked.set()
        assert go_on.wait(20)
        return serve(request)

    server.answer = answer
    background = BackgroundScores(scorer(max_concurrency=1))
    background.expect(COMPLETIONS[:1])
    assert asked.wait(20)
    for completion in COMPLETIONS[1:12]:
        background.expect([completion])
    # Once more, in the order in which they are needed.
    background.expect(needed := COMPLETIONS[4:12])
    background.expect(COMPLETIONS[1:4])
    go_on.set()
    assert_equal(background.wait(COMPLETIONS[:12]), expected(model, COMPLETIONS[:12]))
    sent = [[*map(tuple, request.json["prompt"])] for request in server.requests]
    assert [*map(len, sent)] == [1, 8, 3]
    assert sent[1] == [each.ids for each in needed]
    assert len(server.scored) == 12


@pytest.mark.parametrize("bad", [Completion((1, 2, VOCABULARY), 1), Completion((3,) * 40, 1)], ids=["id", "length"])
def test_what_the_server_refuses_costs_nothing_else(scorer, model, bad, caplog):
    scores = scorer(batch_size=8).scores([*COMPLETIONS[:5], bad, *COMPLETIONS[5:]])
    assert_equal(scores[:5] + scores[6:], expected(model, COMPLETIONS))
    assert [math.isnan(value) for value in scores[5]] == [True] * (len(bad.ids) - 1)
    assert "is left out: " in caplog.text


def test_a_request_that_a_proxy_finds_too_large_is_split(server, scorer, model):
    serve = server.answer
    server.answer = lambda request: Reply(b"", 413) if len(request.json["prompt"]) > 3 else serve(request)
    assert_equal(scorer(batch_size=8).scores(COMPLETIONS), expected(model, COMPLETIONS))


def test_another_error_is_one(server, scorer):
    server.answer = lambda request: Reply(b"who are you", 401)
    with pytest.raises(ServerError, match=r"status 401.*who are you"):
        scorer(batch_size=1).scores(COMPLETIONS)


@pytest.fixture
def cached(scorer, tmp_path):
    return lambda **settings: scorer(cache=ScoreCache(tmp_path / "new" / "scores.db", {"model": "a"}), **settings)


def test_a_second_time_no_request_is_made(server, cached):
    first = cached().scores(COMPLETIONS)
    asked = len(server.requests)
    again = cached()
    assert again.scores(COMPLETIONS[::-1]) == first[::-1]
    assert (len(server.requests), again.requested) == (asked, 0)


def test_scores_of_another_model_or_of_another_prompt_are_not_found(tmp_path):
    cache = ScoreCache(tmp_path / "scores.db", {"model": "a"})
    cache.write({cache.key((1, 2, 3), 1): [-1.0, -2.0]})
    other = ScoreCache(tmp_path / "scores.db", {"model": "b"})
    for keys in ([other.key((1, 2, 3), 1)], [cache.key((1, 2, 3), 2), cache.key((1, 2, 4), 1), cache.key((1, 2), 1)]):
        assert not other.read(keys)
    assert cache.read([cache.key((1, 2, 3), 1)]) == {cache.key((1, 2, 3), 1): [-1.0, -2.0]}


def test_what_is_no_number_in_the_cache_is_asked_for_again(server, scorer, model, tmp_path):
    cache = ScoreCache(tmp_path / "scores.db", {"model": "a"})
    bad = [math.nan, math.inf, -math.inf]
    for each, value in zip(COMPLETIONS, bad, strict=False):
        cache.write({cache.key(each.ids, each.start): [value] * (len(each.ids) - each.start)})
    again = scorer(cache=cache)
    assert_equal(again.scores(COMPLETIONS[:3]), expected(model, COMPLETIONS[:3]))
    assert again.requested == 3


def test_missing_values_are_asked_for_again(server, cached):
    whole = server.answer

    def without_values(request):
        reply = whole(request).body
        for choice in reply["choices"]:
            choice["prompt_logprobs"][-1] = None
        return Reply(reply)

    server.answer = without_values
    assert math.isnan(cached().scores(COMPLETIONS)[3][-1])
    server.answer = whole
    assert not math.isnan(cached().scores(COMPLETIONS)[3][-1])


def test_what_came_before_an_error_is_kept(server, cached):
    whole, answered = server.answer, []

    def break_down(request):
        if len(answered) == 4:
            return Reply(b"gone", 410)
        answered.append(request)
        return whole(request)

    server.answer = break_down
    with pytest.raises(ServerError, match="410"):
        cached(batch_size=2, max_concurrency=1).scores(COMPLETIONS)
    server.answer = whole
    scores = cached(batch_size=2, max_concurrency=1).scores(COMPLETIONS)
    assert all(len(row) == len(each.ids) - each.start for row, each in zip(scores, COMPLETIONS, strict=True))
    assert set(Counter(server.scored).values()) == {1}, "nothing was scored twice"
    assert len(server.scored) == len(COMPLETIONS)


WRITER = """
import sys, time
from trl_xtok.serving.score_cache import ScoreCache
# All of them find no file.
time.sleep(max(float(sys.argv[3]) - time.time(), 0))
cache = ScoreCache(sys.argv[1], {"model": "a"})
for number in range(200):
    cache.write({cache.key((number, int(sys.argv[2])), 1): [-1.0] * 9})
"""


def test_several_processes_write_at_the_same_time(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "scores.db")]
    start = str(time.time() + 2.0)
    writers = [subprocess.Popen([*command, str(number), start]) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    cache = ScoreCache(tmp_path / "scores.db", {"model": "a"})
    keys = [cache.key((number, writer), 1) for number in range(200) for writer in range(3)]
    assert cache.read(keys) == dict.fromkeys(keys, [-1.0] * 9)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "scores.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(CacheError, match=r"scores\.db' cannot be used \(DatabaseError.*delete it"):
        ScoreCache(path, {})
    path.unlink()
    cache = ScoreCache(path, {})
    key = cache.key((1,), 0)
    cache.write({key: [-1.0]})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE scores SET logps = 'cut'")
    database.close()
    with pytest.raises(CacheError, match="delete it"):
        cache.read([key])


def test_another_database_is_left_alone(tmp_path):
    path = tmp_path / "mine.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine (value)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(CacheError, match="not a cache of scores"):
        ScoreCache(path, {})
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be used"):
        ScoreCache(tmp_path / "file" / "scores.db", {})


def test_what_the_server_cannot_read_is_unknown_and_the_rest_is_not(server, scorer, model, clients):
    """As a local teacher says it, with the context that the server leaves."""
    args, tokenizer = tiny_args("unused"), real_tokenizers.smollm2()
    config = served_config(None, tokenizer, args, max_model_len=32)
    config.vocab_size = VOCABULARY
    served, local = ServedTeacher(scorer(), find_model(clients(server.url)), config), LocalTeacher(model, args)
    local.reach = local.reach._replace(context=31)
    prompts = [[1, 2], [3] * 30, [4] * 40, [5]]
    completions = [[6, VOCABULARY, 7], [8] * 5, [9] * 2, [10] * 60]
    actual, wanted = served.token_logps(prompts, completions), local.token_logps(prompts, completions)
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert actual.isnan().sum() == 2 + 4 + 2 + 30
    assert served.name == "someone/teacher"
    assert all(len(ids) < 32 for ids in server.scored)
