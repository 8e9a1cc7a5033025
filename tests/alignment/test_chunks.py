"""What the plain definition of chunks and units leaves open: tokens without bytes, and tokens that are in no chunk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_xtok.alignment.chunks import cut_chunks, merge_units


# A size of 0 is a token that adds no bytes.
sizes = st.lists(st.integers(0, 4), max_size=20)


def ends(token_sizes: list[int]) -> list[int]:
    return [sum(token_sizes[: index + 1]) for index in range(len(token_sizes))]


@pytest.mark.parametrize(
    ("student_ends", "teacher_ends", "expected"),
    [
        pytest.param([2, 2, 4], [2, 4], ([0, 0, 1], [0, 1], 2), id="after a cut: with the chunk before"),
        pytest.param([0, 2], [2], ([0, 0], [0], 1), id="before the first byte: with the first chunk"),
        pytest.param([2, 3, 3, 4], [2, 4], ([0, 1, 1, 1], [0, 1], 2), id="within a chunk: with that chunk"),
        pytest.param([0], [], ([-1], [], 0), id="no chunk to be in"),
        pytest.param([0, 3], [0, 0, 3], ([0, 0], [0, 0, 0], 1), id="on both sides"),
        pytest.param([4, 8], [4, 4, 8, 8], ([0, 1], [0, 0, 1, 1], 2), id="one after each cut"),
    ],
)
def test_a_token_without_bytes_shares_the_chunk_of_its_neighbour(student_ends, teacher_ends, expected):
    assert cut_chunks(student_ends, teacher_ends) == expected


@given(student_sizes=sizes, teacher_sizes=sizes)
def test_each_chunk_has_the_same_number_of_bytes_on_both_sides(student_sizes, teacher_sizes):
    student_chunks, teacher_chunks, num_chunks = cut_chunks(ends(student_sizes), ends(teacher_sizes))
    for number in range(num_chunks):
        student, teacher = (
            [size for size, chunk in zip(token_sizes, chunks, strict=True) if chunk == number]
            for token_sizes, chunks in ((student_sizes, student_chunks), (teacher_sizes, teacher_chunks))
        )
        assert sum(student) == sum(teacher) > 0
        # No shorter chunk would do: the two sides have no end in common inside it.
        inner = [{end for end in ends(side) if end < sum(side)} - {0} for side in (student, teacher)]
        assert not inner[0] & inner[1]


@given(student_sizes=sizes, teacher_sizes=sizes)
def test_chunks_follow_each_other_without_gaps(student_sizes, teacher_sizes):
    student_chunks, teacher_chunks, num_chunks = cut_chunks(ends(student_sizes), ends(teacher_sizes))
    for chunks in (student_chunks, teacher_chunks):
        inside = [chunk for chunk in chunks if chunk != -1]
        assert inside == sorted(inside)
        assert set(inside) == set(range(num_chunks))
        assert chunks[: len(inside)] == inside


@given(token_sizes=st.lists(st.integers(1, 4), max_size=20))
def test_equal_splits_give_a_chunk_per_token(token_sizes):
    numbers = list(range(len(token_sizes)))
    assert cut_chunks(ends(token_sizes), ends(token_sizes)) == (numbers, numbers, len(numbers))


@pytest.mark.parametrize(
    ("student_chunks", "student_regions", "units"),
    [
        pytest.param(
            [4, -1, 4, 5], [0, 1, 2, 3], [-1, -1, -1, 0], id="a dropped token within a chunk spoils all of it"
        ),
        pytest.param([0, 1, 2, 3], [0, -1, 0, 1], [-1, -1, -1, 0], id="a token in no region within a region"),
        pytest.param([-1, 0, 0], [0, 1, 2], [-1, 0, 0], id="a dropped token beside a unit does not touch it"),
        pytest.param([0, 0, 1, 1, 2], [0, 1, 1, 2, 2], [0, 0, 0, 0, 0], id="overlaps join to the end"),
    ],
)
def test_units_around_dropped_tokens(student_chunks, student_regions, units):
    assert merge_units(student_chunks, student_regions) == units
