"""Completions by chunks: what stands above what, sums, colours, and the earliest and latest of them."""

import math

import pytest

from tests.report.folders import chunk_row, whole_run, write_chunks, write_completions
from trl_xtok.report.credit import MOST_TOKENS, Scale, credited, credited_completions, scale_of
from trl_xtok.report.credit_html import credit_html
from trl_xtok.report.pairs import completion_pairs
from trl_xtok.report.run import read_run


def spelled(tokens) -> list[bytes | None]:
    return [token.spelled for token in tokens]


def test_chunks_stand_in_text_order_with_what_is_in_none():
    chunks = credited("", 1, chunk_row()).chunks
    assert [chunk.number for chunk in chunks] == [0, -1, 1, 2, 3]
    assert [spelled(chunk.student) for chunk in chunks[:3]] == [[b" Hel", b"lo"], [b"\xc3"], [b" a\n"]]
    assert [spelled(chunk.teacher) for chunk in chunks[:3]] == [[b" Hello"], [], [b" a", b"\n"]]


def test_sums_of_chunks():
    hello, loose, _, _, end = credited("", 1, chunk_row()).chunks
    assert (hello.student_logp, hello.teacher_logp) == (-1.5, -0.3)
    assert hello.difference == pytest.approx(1.2)
    assert loose.difference is None
    # The teacher could not say.
    assert (end.teacher_logp, end.difference) == (None, None)


@pytest.mark.parametrize(
    ("student", "teacher", "columns"),
    [
        ([], [], []),
        ([-1, -1], [], [(-1, 2, 0)]),
        ([-1, 0], [-1, 0], [(-1, 1, 1), (0, 1, 1)]),
        ([0, -1, -1, 1], [0, -1, 1], [(0, 1, 1), (-1, 2, 1), (1, 1, 1)]),
        ([0, 0, -1], [0, -1, -1], [(0, 2, 1), (-1, 1, 2)]),
    ],
)
def test_tokens_in_no_chunk_stand_where_they_are_in_the_text(student, teacher, columns):
    count, others = len(student), len(teacher)
    row = chunk_row(
        student_ids=[*range(count)],
        student_tokens=[b"s"] * count,
        student_logps=[-1.0] * count,
        student_chunks=student,
        advantages=[None] * count,
        drop_reasons=[None] * count,
        leaves_canonical=[False] * count,
        teacher_ids=[*range(others)],
        teacher_tokens=[b"t"] * others,
        teacher_logps=[-1.0] * others,
        teacher_chunks=teacher,
    )
    chunks = credited("", 1, row).chunks
    assert [(chunk.number, len(chunk.student), len(chunk.teacher)) for chunk in chunks] == columns


def long_row(size: int):
    every = {"ids": [7] * size, "tokens": [b"a"] * size, "logps": [-1.0] * size, "chunks": [*range(size)]}
    sides = {f"{side}_{name}": values for side in ("student", "teacher") for name, values in every.items()}
    return chunk_row(**sides, advantages=[0.5] * size, drop_reasons=[None] * size, leaves_canonical=[False] * size)


def test_a_long_completion_is_shown_in_part_and_the_rest_counted():
    completion = credited("", 1, long_row(MOST_TOKENS + 50))
    assert (len(completion.chunks), completion.left_out) == (MOST_TOKENS, 50)
    assert "50 more student tokens are left out" in credit_html([completion])


@pytest.mark.parametrize(
    ("value", "level"), [(0.0, 0), (0.09, 0), (0.3, 1), (-0.6, -2), (1.4, 3), (-1.9, -4), (99.0, 4)]
)
def test_levels_of_colour(value, level):
    assert Scale(2.0).level(value) == level


def test_one_extreme_value_does_not_wash_out_the_others():
    assert scale_of([0.1] * 99 + [1000.0]).limit == 0.1
    assert scale_of([]).limit > 0


def test_colours_follow_the_advantage_and_the_log_ratio():
    html = credit_html([credited("", 1, chunk_row())])
    assert 'class="token student a-n4 r-n4"' in html
    assert "a-none" in html, "the last token has no advantage"
    assert html.count("leaves") > 1
    assert "invalid utf8" in html


def test_an_objective_without_advantages_is_shown_by_the_log_ratio():
    html = credit_html([credited("", 1, chunk_row(advantages=[None] * 6))])
    assert "gives tokens no advantage" in html
    assert "ratio-only" in html
    assert "colour-advantage" not in html


def test_values_of_a_token_are_on_the_page():
    html = credit_html([credited("eval", 3, chunk_row())])
    assert "Step 3, evaluation" in html
    minus = "\N{MINUS SIGN}"
    assert f'data-student="{minus}1.500" data-teacher="{minus}0.300" data-difference="+1.200"' in html
    assert f'data-id="14" data-logp="{minus}3.000" data-advantage="{minus}2.500"' in html
    assert "&lt;/script&gt;" in html


def test_the_first_and_the_last_completion_of_a_prompt_stand_together(tmp_path):
    found = credited_completions(read_run(whole_run(tmp_path)))
    assert [(one.kind, one.step) for one in found] == [("eval", 0), ("eval", 20)] * 2
    assert found[0].prompt == found[1].prompt == "Hi"


def test_no_number_is_made_of_what_is_none():
    row = chunk_row(teacher_logps=[math.nan] * 5, student_logps=[math.inf] * 6)
    html = credit_html([credited("", 1, row)])
    assert "nan" not in html
    assert "inf" not in html.replace("info", "")


def test_pairs_are_the_first_and_the_last_of_a_prompt(tmp_path):
    for step in (1, 2, 3):
        write_completions(tmp_path, step, {"a": f"a{step}", f"only {step}": "b"})
    (pair,) = completion_pairs(read_run(tmp_path))
    assert (pair.first.row["completion"], pair.last.row["completion"], pair.same_prompt) == ("a1", "a3", True)


def test_evaluations_come_before_training(tmp_path):
    for step in (1, 2):
        write_completions(tmp_path, step, {"a": "training"})
        write_completions(tmp_path, step, {"b": "evaluation"}, "eval_")
    (pair,) = completion_pairs(read_run(tmp_path))
    assert (pair.kind, pair.first.row["completion"]) == ("eval", "evaluation")


def test_training_serves_where_an_evaluation_was_made_once(tmp_path):
    for step in (1, 2):
        write_completions(tmp_path, step, {"a": f"training {step}"})
    write_completions(tmp_path, 2, {"b": "evaluation"}, "eval_")
    (pair,) = completion_pairs(read_run(tmp_path))
    assert pair.last.row["completion"] == "training 2"


def test_without_a_prompt_in_common_any_two_are_shown(tmp_path):
    write_completions(tmp_path, 1, {"a": "first"})
    write_completions(tmp_path, 2, {"b": "last"})
    (pair,) = completion_pairs(read_run(tmp_path))
    assert not pair.same_prompt
    assert (pair.first.row["prompt"], pair.last.row["prompt"]) == ("a", "b")


def test_a_prompt_sampled_several_times_in_a_step_is_one_pair(tmp_path):
    write_completions(tmp_path, 1, {"a": "first"})
    run = read_run(tmp_path)
    run.completions[0].rows.append({**run.completions[0].rows[0], "completion": "second"})
    (pair, other) = completion_pairs(run)
    assert pair.last is other.last is None


def test_files_of_chunks_without_rows_are_none(tmp_path):
    write_completions(tmp_path, 1, {"a": "b"})
    write_chunks(tmp_path, 1, [chunk_row()])
    assert len(read_run(tmp_path).chunks) == 1
