"""Arguments that belong to some objectives only, and arguments that contradict each other."""

import pytest

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.errors import ConfigError


def config(**changes) -> CrossTokenizerGKDConfig:
    return CrossTokenizerGKDConfig("out", **changes)


@pytest.mark.parametrize(
    ("objective", "name", "value"),
    [
        ("auto", "chunk_weight", 0.5),
        ("chunk_rkl", "beta", 1.0),
        ("chunk_rkl", "chunk_temperature", 2.0),
        ("exact_jsd", "credit", "uniform"),
        ("exact_jsd", "max_chunk_tokens", 4),
        ("shared_vocab_jsd", "one_to_one_only", True),
        ("shared_vocab_jsd", "chunk_weight", 0.5),
        ("hybrid", "segmentation", "text"),
        ("prefix_jsd", "chunk_temperature", 2.0),
        ("chunk_jsd", "credit", "additive"),
        ("chunk_jsd", "segmentation", "text"),
        ("chunk_jsd", "advantage_clip", 3.0),
        ("chunk_jsd", "advantage_baseline", "mean"),
        ("chunk_jsd", "canonical_guard", 1.0),
        ("chunk_jsd", "dropped_advantage", -1.0),
    ],
)
def test_an_argument_that_the_objective_does_not_read_is_refused(objective, name, value):
    with pytest.raises(ConfigError, match=f"`{name}={value!r}` has no effect on `objective='{objective}'`"):
        config(objective=objective, **{name: value})


@pytest.mark.parametrize(
    ("objective", "name", "value"),
    [
        ("auto", "segmentation", "text"),
        ("chunk_rkl", "credit", "uniform"),
        ("chunk_rkl", "max_chunk_tokens", 4),
        ("chunk_rkl", "drop_whitespace", True),
        ("chunk_rkl", "max_lookahead", 0.5),
        ("hybrid", "chunk_weight", 0.5),
        ("hybrid", "max_lookahead", 0.5),
        ("hybrid", "one_to_one_only", True),
        ("prefix_jsd", "advantage_clip", 3.0),
        ("prefix_jsd", "canonical_guard", 1.0),
    ],
)
def test_where_the_student_writes_nothing_nothing_is_credited(objective, name, value):
    options = {"objective": objective, "crossentropy_weight": 1.0, name: value}
    message = f"`{name}={value!r}` has no effect on `objective='{objective}'` with `lmbda=0.0`.*or raise `lmbda`"
    with pytest.raises(ConfigError, match=message):
        config(**options, lmbda=0.0)
    evaluating = {"eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ConfigError, match=message):
        config(**options, **evaluating, lmbda=0.0, eval_on_dataset=True)
    # What is said of the student's own completions in an evaluation is credited.
    assert getattr(config(**options, **evaluating, lmbda=0.0), name) == value
    assert getattr(config(**options, eval_on_start=True, lmbda=0.0), name) == value
    assert getattr(config(**options, lmbda=0.5), name) == value


@pytest.mark.parametrize(
    ("name", "value"), [("credit", "uniform"), ("canonical_guard", 1.0), ("dropped_advantage", -1.0)]
)
def test_a_credit_without_weight_has_no_options(name, value):
    with pytest.raises(ConfigError, match=rf"`{name}=.*with `chunk_weight=0`.*or raise `chunk_weight`"):
        config(objective="prefix_jsd", chunk_weight=0.0, **{name: value})


def test_hybrid_trains_on_every_chunk():
    with pytest.raises(ConfigError, match=r"`chunk_weight=0` leaves chunks .*'hybrid'.*Use 'shared_vocab_jsd'"):
        config(objective="hybrid", chunk_weight=0.0)


@pytest.mark.parametrize("objective", ["chunk_rkl", "prefix_jsd"])
def test_what_the_teacher_writes_may_be_scored_at_another_temperature(objective):
    options = {"objective": objective, "seq_kd": True, "temperature": 0.8, "crossentropy_weight": 1.0}
    assert config(**options, lmbda=0.0, scoring_temperature=1.0).scoring["temperature"] == 1.0
    with pytest.raises(ConfigError, match=r"Set `scoring_temperature=1.0`"):
        config(**options, lmbda=0.0)
    with pytest.raises(ConfigError, match=r"`scoring_temperature=1.0` differs from `temperature=0.8`"):
        config(**options, lmbda=0.5, scoring_temperature=1.0)


def test_no_engine_where_the_student_writes_nothing():
    with pytest.raises(ConfigError, match=r"`use_vllm=True` has no effect with `lmbda=0.0`"):
        config(objective="chunk_jsd", lmbda=0.0, use_vllm=True, vllm_mode="server", vllm_server_base_url="http://a")


def test_two_names_of_the_length_of_a_completion():
    assert config().max_new_tokens == 128
    assert config(max_completion_length=7).max_new_tokens == 7
    assert config(max_completion_length=7, max_new_tokens=7).max_new_tokens == 7
    with pytest.raises(ConfigError, match="`max_completion_length=7` and `max_new_tokens=9` are two names"):
        config(max_completion_length=7, max_new_tokens=9)
    with pytest.raises(ConfigError, match="`max_new_tokens` must be a whole number"):
        config(max_completion_length=0)


@pytest.mark.parametrize("objective", ["chunk_rkl", "hybrid", "prefix_jsd"])
def test_samples_are_credited_by_the_distribution_they_were_drawn_from(objective):
    with pytest.raises(ConfigError, match=r"`scoring_temperature=1.0` differs from `temperature=0.8`"):
        config(objective=objective, temperature=0.8, scoring_temperature=1.0)
    assert config(objective=objective, temperature=0.8, scoring_temperature=0.8).scoring["temperature"] == 0.8
    assert config(objective="chunk_jsd", temperature=0.8, scoring_temperature=2.0).scoring["temperature"] == 2.0
