"""Chunks from token ends, and units from chunks and regions: against the plain definition, without a tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_xtok.alignment.chunks import cut_chunks, merge_units


ends = st.lists(st.integers(1, 40), max_size=20, unique=True).map(sorted)


def numbers(shares: list[int], lost: set[int]) -> list[int]:
    """Numbers of neighbouring groups of the given sizes; tokens in `lost` are in none."""
    raw = [group for group, share in enumerate(shares) for _ in range(share)]
    kept = sorted({group for token, group in enumerate(raw) if token not in lost})
    return [-1 if token in lost else kept.index(group) for token, group in enumerate(raw)]


@st.composite
def chunks_and_regions(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two groupings of the same tokens; a group loses all of its tokens or none."""
    sides = []
    length = draw(st.integers(0, 16))
    for _ in range(2):
        cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=length))) if length > 1 else []
        shares = [stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)]
        lost_groups = draw(st.sets(st.integers(0, 15), max_size=3))
        raw = [group for group, share in enumerate(shares) for _ in range(share)]
        sides.append(numbers(shares, {token for token, group in enumerate(raw) if group in lost_groups}))
    return sides[0], sides[1]


def linked(first: int, second: int, groupings: tuple[list[int], list[int]]) -> bool:
    return any(grouping[first] == grouping[second] != -1 for grouping in groupings)


def units_by_definition(groupings: tuple[list[int], list[int]]) -> list[int]:
    """Connected components of tokens that share a chunk or a region, without those that hold a lost token."""
    length = len(groupings[0])
    component = list(range(length))
    for _ in range(length):
        for i in range(length):
            for j in range(length):
                if linked(i, j, groupings):
                    component[i] = component[j] = min(component[i], component[j])
    spoiled = {component[i] for i in range(length) for grouping in groupings if grouping[i] == -1}
    order = sorted(set(component) - spoiled)
    return [-1 if number in spoiled else order.index(number) for number in component]


@pytest.mark.parametrize(
    ("student_ends", "teacher_ends", "expected"),
    [
        pytest.param([], [], ([], [], 0), id="empty completion"),
        pytest.param([5], [5], ([0], [0], 1), id="one token each"),
        pytest.param([3, 5], [5], ([0, 0], [0], 1), id="Hel|lo against Hello"),
        pytest.param([2, 4], [3, 4], ([0, 0], [0, 0], 1), id="crossing split"),
        pytest.param([1, 4, 6], [2, 4, 5, 6], ([0, 0, 1], [0, 0, 1, 1], 2), id="a cut in the middle"),
        pytest.param([1, 2, 3], [1, 2, 3], ([0, 1, 2], [0, 1, 2], 3), id="equal splits"),
        pytest.param([2, 5], [2], ([0, -1], [0], 1), id="nothing of the teacher's after the last cut"),
    ],
)
def test_chunks_from_token_ends(student_ends, teacher_ends, expected):
    assert cut_chunks(student_ends, teacher_ends) == expected


@given(student_ends=ends, teacher_ends=ends)
def test_there_is_a_chunk_per_common_end(student_ends, teacher_ends):
    cuts = sorted(set(student_ends) & set(teacher_ends))
    expected = [
        [next((number for number, cut in enumerate(cuts) if end <= cut), -1) for end in side]
        for side in (student_ends, teacher_ends)
    ]
    assert cut_chunks(student_ends, teacher_ends) == (*expected, len(cuts))
    assert cut_chunks(teacher_ends, student_ends) == (*reversed(expected), len(cuts))


@pytest.mark.parametrize(
    ("student_chunks", "student_regions", "units"),
    [
        pytest.param([], [], [], id="empty completion"),
        pytest.param([0, 1, 2], [0, 1, 2], [0, 1, 2], id="every token for itself"),
        pytest.param([0, 0, 1], [0, 1, 2], [0, 0, 1], id="a chunk joins two regions"),
        pytest.param([0, 1, 2], [0, 0, 1], [0, 0, 1], id="a region joins two chunks"),
        pytest.param([0, 0, 1, 1], [0, 1, 1, 2], [0, 0, 0, 0], id="a chain of overlaps"),
        pytest.param([0, -1, 1], [0, 0, 1], [-1, -1, 0], id="a dropped token spoils its region"),
        pytest.param([0, 0, 1], [0, -1, 1], [-1, -1, 0], id="a token in no region spoils its chunk"),
        pytest.param([-1, -1], [-1, -1], [-1, -1], id="nothing aligned"),
    ],
)
def test_units_of_chunks_and_regions(student_chunks, student_regions, units):
    assert merge_units(student_chunks, student_regions) == units


@given(groupings=chunks_and_regions())
def test_units_are_the_smallest_that_hold_whole_chunks_and_whole_regions(groupings):
    assert merge_units(*groupings) == units_by_definition(groupings)
