"""Text to tokens: what each token is said to spell is what stands there, and the pipeline is a private one."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.alignment import reference, texts
from tests.alignment.pairs import BYTE_LEVEL, SENTENCEPIECE, tokenizer
from trl_xtok.alignment.spelling import Spelling
from trl_xtok.alignment.text_encoder import TextEncoder


STRIPPING = {"type": "Strip", "strip_left": True, "strip_right": True}
COLLAPSING = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
ACROSS_WORDS = {"type": "Replace", "pattern": {"String": "e f"}, "content": "!"}


def changed(name: str, **components) -> PreTrainedTokenizerFast:
    """A copy of a tokenizer with other components."""
    parts = json.loads(tokenizer(name).backend_tokenizer.to_str())
    for component, value in components.items():
        parts[component] = parts[component] | value if component == "model" else value
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token=None)


def sequence(*normalizers: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(normalizers)}


def lower_case_words() -> PreTrainedTokenizerFast:
    """Its normalizer writes bytes as characters already, as some tokenizers do."""
    split = {"type": "Split", "pattern": {"Regex": "Ġ?[a-z]+"}, "behavior": "Isolated", "invert": False}
    return changed("smollm2", normalizer=sequence({"type": "Lowercase"}, {"type": "ByteLevel"}), pre_tokenizer=split)


def with_words() -> PreTrainedTokenizerFast:
    tokens = changed("qwen3")
    tokens.add_tokens([AddedToken("fox jumps", lstrip=True, rstrip=True), "déjà", "    ", "<table>"])
    return tokens


ENCODERS = {name: lambda name=name: tokenizer(name) for name in [*BYTE_LEVEL, *SENTENCEPIECE]}
ENCODERS |= {name: lambda name=name: tokenizer(name) for name in ("jurassic2", "unigram", "wordpiece")}
ENCODERS |= {
    "strips and collapses": lambda: changed("smollm2", normalizer=sequence({"type": "NFKC"}, STRIPPING, COLLAPSING)),
    "looks across words": lambda: changed("qwen3", normalizer=sequence({"type": "NFC"}, ACROSS_WORDS)),
    "writes bytes first": lower_case_words,
    "has words added": with_words,
}
_made: dict[str, TextEncoder] = {}


def encoder(name: str) -> TextEncoder:
    if name not in _made:
        _made[name] = TextEncoder(ENCODERS[name]())
    return _made[name]


def spell(name: str, text: bytes, *, unfinished: bool = False) -> Spelling:
    spelling = Spelling()
    encoder(name).spell(text, spelling, unfinished=unfinished)
    return spelling


def joined(name: str, spelling: Spelling) -> bytes:
    return b"".join(encoder(name).table.spell(token_id) or b"" for token_id in spelling.ids if token_id is not None)


words = st.sampled_from([word for text in texts.ALL.values() for word in re.split(r"(?<=\s)", text)])
any_bytes = st.lists(
    st.one_of(words.map(str.encode), st.text(max_size=8).map(str.encode), st.binary(max_size=3)), max_size=10
).map(b"".join)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=60)
@given(text=any_bytes, unfinished=st.booleans())
def test_each_stretch_is_spelled_by_its_tokens_or_has_a_reason(name, text, unfinished):
    spelling = spell(name, text, unfinished=unfinished)
    assert spelling.end == len(text)
    assert spelling.ends == sorted(spelling.ends)
    assert all(reason for token_id, reason in zip(spelling.ids, spelling.reasons, strict=True) if token_id is None)
    start = 0
    for end in sorted(set(spelling.ends) - {0}):
        group = [index for index, at in enumerate(spelling.ends) if at == end]
        ids = [spelling.ids[index] for index in group]
        spelled = b"".join(encoder(name).table.spell(token_id) or b"" for token_id in ids if token_id is not None)
        if not any(spelling.reasons[index] for index in group):
            # WordPiece has a space before the first word of a text, too.
            assert reference.canonical(text[start:end]) in (
                reference.canonical(spelled),
                reference.canonical(spelled[1:]),
            )
            assert encoder(name).table.joins_words or reference.canonical(text[start:end]) == reference.canonical(
                spelled
            )
        start = end


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCEPIECE])
@settings(max_examples=25)
@given(text=st.lists(words, max_size=6).map("".join))
def test_without_unicode_forms_nothing_of_a_text_is_lost(name, text):
    spelling = Spelling()
    raw = TextEncoder(tokenizer(name), unicode_forms=False)
    raw.spell(text.encode(), spelling)
    spelled = b"".join(raw.table.spell(token_id) or b"" for token_id in spelling.ids if token_id is not None)
    assert spelled == text.encode() or name == "smollm2"


def test_text_of_a_control_token_is_split_where_the_model_would_take_it():
    backend = tokenizer("unigram").backend_tokenizer
    assert backend.model.tokenize("</s>")[0].value == "</s>"
    spelling = spell("unigram", b"the work</s></s>")
    assert not {backend.token_to_id("</s>"), backend.token_to_id("<s>")} & set(spelling.ids)


@pytest.mark.parametrize("content", ["fox jumps", "déjà", "    ", "<table>"])
def test_added_words_are_found_with_the_white_space_around_them(content):
    text = f"a {content} b"
    spelling = spell("has words added", text.encode())
    assert encoder("has words added").table.text_tokens[content] in spelling.ids
    assert joined("has words added", spelling).decode() == text


def test_segmentation_is_not_sampled_and_the_callers_model_still_does():
    dropping = changed("smollm2", model={"dropout": 0.5})
    text = texts.CLEAN["english"].encode()
    for _ in range(5):
        spelling = Spelling()
        TextEncoder(dropping).spell(text, spelling)
        assert spelling.ids == spell("smollm2", text).ids
    assert dropping.backend_tokenizer.model.dropout == 0.5


def test_what_is_stripped_is_a_hole():
    spelling = spell("strips and collapses", b"  two  words ")
    holes = [
        (end, reason)
        for token_id, end, reason in zip(spelling.ids, spelling.ends, spelling.reasons, strict=True)
        if token_id is None
    ]
    assert holes == [(2, "normalized"), (13, "normalized")]
    assert joined("strips and collapses", spelling) == b"two words"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_beginning_of_a_character_is_left_out_of_an_unfinished_text(length):
    text = b"ab" + "🙂".encode()[:length]
    unfinished, finished = spell("llama3", text, unfinished=True), spell("llama3", text)
    assert unfinished.reasons[-1] == "cut_character"
    assert joined("llama3", unfinished) == b"ab"
    assert joined("llama3", finished) == text


@pytest.mark.parametrize(
    ("name", "text", "lost", "reason"),
    [
        pytest.param("wordpiece", "the   fox", "   ", "normalized", id="more than one space before a word"),
        pytest.param(
            "smollm2", "ab\U00050000 cd", "\U00050000", "unspellable", id="a character that no byte token spells"
        ),
        pytest.param("unigram", "the 机器 work", "机器", "unspellable", id="characters that the model does not know"),
    ],
)
def test_what_the_model_has_no_token_for_costs_nothing_else(name, text, lost, reason):
    spelling = spell(name, text.encode())
    start = len(text[: text.index(lost)].encode())
    starts = [0, *spelling.ends]
    unspelled = [at for at, why in zip(starts, spelling.reasons, strict=False) if why == reason]
    spelled = [at for at, why in zip(starts, spelling.reasons, strict=False) if why is None]
    assert unspelled and all(start <= at <= start + len(lost.encode()) for at in unspelled)
    assert spelled[0] == 0 and spelled[-1] >= start + len(lost.encode())
