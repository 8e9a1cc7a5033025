"""Align two tokenizations of one text.

The only input is where each token ends, counted in bytes. A byte at which both tokenizers end a token is a cut; what
lies between two neighbouring cuts is a chunk. No vocabulary, no tensor and no model is involved.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise


def cut_chunks(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Cut the text at every byte where both sides end a token.

    Args:
        student_ends: Byte offset at which each student token ends, never decreasing. A token that adds no bytes ends
            where the token before it ends, and shares its chunk.
        teacher_ends: The same for the teacher, over the same text.

    Returns:
        Chunk number of each student token, of each teacher token, and the number of chunks. Chunks are numbered in
        text order and have tokens on both sides; tokens after the last cut are in no chunk (-1).

    Example:
        >>> cut_chunks([3, 5, 7], [5, 6, 7])  # "Hel|lo|!!" against "Hello|!|!"
        ([0, 0, 1], [0, 1, 1], 2)
    """
    cuts = set(student_ends).intersection(teacher_ends) - {0}

    def count(ends: Sequence[int]) -> list[int]:
        begins = [start in cuts and start < end for start, end in pairwise([0, *ends])]
        chunks = list(accumulate(begins, initial=0))[1:]
        # A chunk that no cut closes is none.
        closed = len(cuts)
        return chunks if not chunks or chunks[-1] < closed else [chunk if chunk < closed else -1 for chunk in chunks]

    return count(student_ends), count(teacher_ends), len(cuts)


def merge_units(student_chunks: Sequence[int], student_regions: Sequence[int]) -> list[int]:
    """Join chunks and regions that overlap into the smallest units made of whole chunks and whole regions.

    Args:
        student_chunks: Chunk number of each student token, -1 = in no chunk.
        student_regions: Region number of each student token, -1 = in no region. A region is a stretch between ends
            that the sampled and the canonical tokenization of the student share.

    Returns:
        Unit number of each student token, counted from 0 in text order. All tokens of a unit that holds a token in no
        chunk or in no region get -1.

    Example:
        >>> merge_units([0, 0, 1, 2, -1], [0, 1, 1, 2, 3])
        [0, 0, 0, 1, -1]
    """
    last_of_chunk = {chunk: index for index, chunk in enumerate(student_chunks) if chunk >= 0}
    last_of_region = {region: index for index, region in enumerate(student_regions) if region >= 0}
    units: list[int] = []
    unit, last, whole = 0, 0, True
    for index, (chunk, region) in enumerate(zip(student_chunks, student_regions, strict=True)):
        last = max(last, last_of_chunk.get(chunk, index), last_of_region.get(region, index))
        whole = whole and chunk >= 0 and region >= 0
        if last == index:
            units.extend([unit if whole else -1] * (index + 1 - len(units)))
            unit, whole = unit + whole, True
    return units
