"""Where the parts of a text are after normalization, and which of them are still the same text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from tests.alignment import texts
from tests.alignment.pairs import tokenizer
from trl_xtok.alignment.normalization import Region, correspond
from trl_xtok.alignment.spelling import Spelling, carry_over


NORMALIZERS = {
    "NFC": normalizers.NFC(),
    "NFD": normalizers.NFD(),
    "NFKC": normalizers.NFKC(),
    "lower case": normalizers.Lowercase(),
    "BERT": normalizers.BertNormalizer(),
    "collapsed spaces": normalizers.Replace(Regex(" {2,}"), " "),
    "quotes of two characters": normalizers.Replace("''", '"'),
    "a pattern across words": normalizers.Replace("b c", "!"),
    "nothing left": normalizers.Replace(Regex(r"[\s\S]"), ""),
    "stripped": normalizers.Strip(),
}


def regions(text: str, normalize) -> list[tuple[str, str, str]]:
    """Regions with the text they stand for, before and after."""
    before, after = text.encode(), normalize(text).encode()
    found = []
    for region in correspond(text, after.decode(), normalize):
        found.append((before[: region.original].decode(), after[: region.normalized].decode(), region.kind))
        before, after = before[region.original :], after[region.normalized :]
    assert before == after == b""
    return found


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("plain text", [("plain text", "plain text", "same")], id="nothing to do"),
        pytest.param(
            "re\u0301sume",
            [("r", "r", "same"), ("e\u0301", "\u00e9", "equivalent"), ("sume", "sume", "same")],
            id="a letter and its accent",
        ),
        pytest.param(
            "\u1112\u1161\u11ab\u1100\u116e\u11a8",
            [("\u1112\u1161\u11ab", "\ud55c", "equivalent"), ("\u1100\u116e\u11a8", "\uad6d", "equivalent")],
            id="Hangul, syllable by syllable",
        ),
        pytest.param("5 \u212b", [("5 ", "5 ", "same"), ("\u212b", "\u00c5", "equivalent")], id="a singleton"),
        pytest.param(
            "q\u0307\u0323",
            [("q", "q", "same"), ("\u0307\u0323", "\u0323\u0307", "equivalent")],
            id="marks in another order: the letter is apart",
        ),
        pytest.param("\u0301a", [("\u0301a", "\u0301a", "same")], id="a mark without a letter"),
        pytest.param(
            "x\u05ae\u0f73yy",
            [("x", "x", "same"), ("\u05ae\u0f73", "\u0f71\u0f72\u05ae", "equivalent"), ("yy", "yy", "same")],
            id="a letter that decomposes into marks",
        ),
    ],
)
def test_canonical_equivalence(text, expected):
    assert regions(text, nfc) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param(
            "NFKC",
            "a \ufb01n",
            [("a ", "a ", "same"), ("\ufb01", "fi", "changed"), ("n", "n", "same")],
            id="one character becomes two",
        ),
        pytest.param(
            "collapsed spaces",
            "a  b c",
            [("a", "a", "same"), ("  ", " ", "changed"), ("b c", "b c", "same")],
            id="a run of spaces becomes one",
        ),
        pytest.param(
            "quotes of two characters",
            "x ''a'' y",
            [("x ", "x ", "same"), ("''a''", '"a"', "changed"), (" y", " y", "same")],
            id="a word that does not normalize letter by letter",
        ),
        pytest.param(
            "a pattern across words",
            "a b c d",
            [("a b c d", "a ! d", "changed")],
            id="words that do not normalize one by one",
        ),
        pytest.param(
            "nothing left", "abc", [("a", "", "changed"), ("b", "", "changed"), ("c", "", "changed")], id="gone"
        ),
    ],
)
def test_changed_text(name, text, expected):
    assert regions(text, NORMALIZERS[name].normalize_str) == expected


def test_a_deleted_first_character_does_not_shift_the_rest():
    """The offsets of the library do shift here."""
    normalize = tokenizer("unigram").backend_tokenizer.normalizer.normalize_str
    assert regions("\x01aaaa", normalize) == [("\x01", "", "changed"), ("aaaa", "aaaa", "same")]


def test_what_looks_far_ahead_costs_only_its_neighbourhood():
    text = "word " * 500 + "b c " + "word " * 500
    changed = [
        before
        for before, _, kind in regions(text, NORMALIZERS["a pattern across words"].normalize_str)
        if kind == "changed"
    ]
    assert len(changed) == 1
    assert len(changed[0]) < 400


words = st.sampled_from([word for text in texts.ALL.values() for word in text.split(" ")])


@pytest.mark.parametrize("name", NORMALIZERS)
@given(text=st.lists(st.one_of(words, st.text(max_size=8)), max_size=8).map(" ".join))
def test_regions_cover_both_texts_and_their_kind_is_true(name, text):
    found = regions(text, NORMALIZERS[name].normalize_str)
    for before, after, kind in found:
        assert (before == after) == (kind == "same")
        equivalent = unicodedata.normalize("NFD", before) == unicodedata.normalize("NFD", after)
        assert equivalent == (kind != "changed")
    if name in ("NFC", "NFD"):
        assert all(kind != "changed" for _, _, kind in found)


SAME, EQUIVALENT, CHANGED, DELETED = (
    Region(2, 2, "same"),
    Region(3, 2, "equivalent"),
    Region(1, 2, "changed"),
    Region(1, 0, "changed"),
)


@pytest.mark.parametrize(
    ("token_ends", "regions", "carried"),
    [
        pytest.param([2, 4], [SAME, SAME], [(0, 2, None), (1, 4, None)], id="as it was"),
        pytest.param([2, 4], [EQUIVALENT, SAME], [(0, 3, None), (1, 5, None)], id="moved by what stands before"),
        pytest.param([1, 2], [EQUIVALENT], [(0, 3, None), (1, 3, None)], id="an end within equivalent text is none"),
        pytest.param([2, 3], [CHANGED, SAME], [(0, 1, "normalized"), (1, 2, None)], id="changed text"),
        pytest.param(
            [1, 4, 6],
            [CHANGED, SAME, SAME],
            [(0, 3, "normalized"), (1, 3, "normalized"), (2, 5, None)],
            id="a token that begins in changed text, and the one before it",
        ),
        pytest.param(
            [4, 6], [CHANGED, EQUIVALENT, SAME], [(0, 4, "normalized"), (1, 6, None)], id="changed, then equivalent"
        ),
        pytest.param([2], [SAME, DELETED], [(0, 2, None), (None, 3, "normalized")], id="deleted at the end: a hole"),
        pytest.param(
            [2],
            [DELETED, DELETED, SAME],
            [(None, 1, "normalized"), (None, 2, "normalized"), (0, 4, None)],
            id="at the start",
        ),
        pytest.param([4], [SAME, DELETED, SAME], [(0, 5, "normalized")], id="deleted within a token: no hole"),
        pytest.param([], [DELETED], [(None, 1, "normalized")], id="nothing left"),
    ],
)
def test_tokens_are_carried_over_to_the_text_as_it_was(token_ends, regions, carried):
    tokens = Spelling(list(range(len(token_ends))), token_ends, [None] * len(token_ends))
    result = carry_over(tokens, regions)
    assert list(zip(result.ids, result.ends, result.reasons, strict=True)) == carried
