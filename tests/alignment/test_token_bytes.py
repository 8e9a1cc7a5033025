"""The bytes of single tokens, on real tokenizers; and the tokenizers of which they cannot be known."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.alignment import texts
from tests.alignment.pairs import BYTE_LEVEL, SENTENCEPIECE, pieces, tokenizer
from tests.conversion import printable_bytes
from trl_xtok.alignment.text_encoder import TextEncoder
from trl_xtok.alignment.token_bytes import token_bytes
from trl_xtok.errors import TokenizerError


EVERY = [*BYTE_LEVEL, *SENTENCEPIECE, "jurassic2", "unigram", "wordpiece"]


def copy_of(name: str, **components) -> PreTrainedTokenizerFast:
    """A tokenizer of our own to change, with other components if given."""
    parts = json.loads(tokenizer(name).backend_tokenizer.to_str()) | components
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts)), eos_token=None)


@pytest.mark.parametrize(
    ("name", "piece", "spelled"),
    [
        pytest.param("smollm2", "Ġthe", b" the", id="ByteLevel: a word"),
        pytest.param("llama3", "Ċ", b"\n", id="ByteLevel: newline"),
        pytest.param("qwen3", "ðŁ", b"\xf0\x9f", id="ByteLevel: a torn character"),
        pytest.param("qwen3", "<think>", b"<think>", id="ByteLevel: added, not special"),
        pytest.param(
            "deepseek", "<｜begin▁of▁sentence｜>", "<｜begin▁of▁sentence｜>".encode(), id="ByteLevel: added, not ASCII"
        ),
        pytest.param("smollm2", "<|im_end|>", b"<|im_end|>", id="ByteLevel: special, also a piece"),
        pytest.param("tekken", "[INST]", b"[INST]", id="Tekken: special, before the ranks"),
        pytest.param("gemma3", "▁the", b" the", id="SentencePiece: a word"),
        pytest.param("gemma3", "▁▁", b"  ", id="SentencePiece: added white space"),
        pytest.param("gemma3", "\n\n", b"\n\n", id="SentencePiece: added newlines"),
        pytest.param("gemma3", "<0xE2>", b"\xe2", id="SentencePiece: a byte"),
        pytest.param("mistral1", "<0x41>", b"A", id="SentencePiece: a byte that is a letter"),
        pytest.param("jurassic2", "<0x41>", b"A", id="Unigram with byte fallback"),
        pytest.param("unigram", "▁the", b" the", id="Unigram: a word"),
        pytest.param("unigram", "</s>", b"</s>", id="Unigram: special"),
        pytest.param("wordpiece", "hello", b" hello", id="WordPiece: starts a word"),
        pytest.param("wordpiece", "##ing", b"ing", id="WordPiece: continues a word"),
        pytest.param("wordpiece", "[SEP]", b"[SEP]", id="WordPiece: special"),
    ],
)
def test_bytes_of_a_piece(name, piece, spelled):
    token_id = tokenizer(name).backend_tokenizer.token_to_id(piece)
    assert token_id is not None
    assert token_bytes(tokenizer(name)).spell(token_id) == spelled


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_the_whole_table_is_what_the_reference_spells(name):
    table = token_bytes(tokenizer(name)).pieces
    ids = [token_id for token_id in range(0, len(table), 7) if table[token_id] is not None]
    assert [table[token_id] for token_id in ids] == pieces(name, ids)


@pytest.mark.parametrize("name", EVERY)
def test_there_is_an_entry_for_every_token_and_for_no_other_id(name):
    table = token_bytes(tokenizer(name))
    vocab = tokenizer(name).get_vocab()
    assert {token_id for token_id, piece in enumerate(table.pieces) if piece is not None} == set(vocab.values())
    assert table.spell(-1) is table.spell(len(table.pieces)) is table.spell(2**40) is None


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_a_decoded_text_is_the_sum_of_its_tokens(name):
    """`decode` shows the same for a whole text, though it cannot be asked for one token."""
    table = token_bytes(tokenizer(name))
    for text in texts.CLEAN.values():
        ids = tokenizer(name).encode(text, add_special_tokens=False)
        spelled = b"".join(table.spell(token_id) or b"" for token_id in ids).decode(errors="replace")
        assert spelled.lstrip(" ") == tokenizer(name).backend_tokenizer.decode(ids).lstrip(" ")


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCEPIECE, "jurassic2"])
def test_single_byte_tokens(name):
    byte_ids = token_bytes(tokenizer(name)).byte_ids
    vocab = tokenizer(name).get_vocab()
    names = printable_bytes() if name in BYTE_LEVEL else {byte: f"<0x{byte:02X}>" for byte in range(256)}
    assert byte_ids == {byte: vocab[piece] for byte, piece in names.items() if piece in vocab}
    assert len(byte_ids) == 256 or name == "smollm2"


@pytest.mark.parametrize(
    ("name", "markers", "text_tokens"),
    [
        pytest.param("qwen3", ["<think>", "<tool_call>", "<|im_end|>", "<|fim_pad|>"], [], id="Qwen"),
        pytest.param(
            "gemma3",
            ["<eos>", "<start_of_turn>", "<unused7>", "[multimodal]", "</s>"],
            ["\n\n", "\t", "<table>", "</td>", "<h1>"],
            id="Gemma: white space and HTML are text",
        ),
        pytest.param("deepseek", ["<｜User｜>", "｜DSML｜", "<think>", "<dsml:"], [], id="DeepSeek"),
    ],
)
def test_added_tokens_that_mean_something_are_told_from_text(name, markers, text_tokens):
    table = token_bytes(tokenizer(name))
    assert set(markers) <= table.markers.keys()
    assert set(text_tokens) <= table.text_tokens.keys()
    assert not table.markers.keys() & table.text_tokens.keys()


def test_tokens_added_later_are_in_the_table():
    tokens = copy_of("smollm2")
    before = token_bytes(tokens)
    assert token_bytes(tokens) is before
    tokens.add_tokens(["naïveword", AddedToken("<tag>", lstrip=True, rstrip=True, normalized=True)])
    after = token_bytes(tokens)
    assert after.pieces[-2:] == ["naïveword".encode(), b"<tag>"]
    assert after.pieces[:-2] == before.pieces
    assert "naïveword" in after.text_tokens
    assert "<tag>" in after.markers


def test_unigram_piece_that_is_listed_twice():
    parts = json.loads(tokenizer("unigram").backend_tokenizer.to_str())
    parts["model"]["vocab"].append(parts["model"]["vocab"][100])
    table = token_bytes(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts))))
    assert table.spell(len(table.pieces) - 1) == table.spell(100) is not None


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        pytest.param(None, r"decoder None.*Supported are ByteLevel", id="none"),
        pytest.param(
            {"type": "BPEDecoder", "suffix": "</w>"}, "decoder .'BPEDecoder'.", id="a suffix at the end of words"
        ),
        pytest.param(
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
            r"'ĠThe'.*does not stand in the rest of the text",
            id="of another tokenizer",
        ),
        pytest.param(
            {"type": "Replace", "pattern": {"Regex": "Ġ"}, "content": " "},
            "decoder .'Replace'.",
            id="a regular expression",
        ),
    ],
)
def test_decoder_that_does_not_say_what_a_token_spells_is_refused(decoder, message):
    with pytest.raises(TokenizerError, match=message):
        token_bytes(copy_of("smollm2", decoder=decoder))


def test_decoder_in_python_is_refused():
    class Shouting:
        def decode_chain(self, tokens: list[str]) -> list[str]:
            return [token.upper() for token in tokens]

    tokens = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    tokens.backend_tokenizer.decoder = decoders.Decoder.custom(Shouting())
    with pytest.raises(TokenizerError, match=r"component of .* cannot be read"):
        token_bytes(tokens)


def test_words_without_a_decoder_are_refused():
    backend = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(TokenizerError, match="decoder None"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_slow_tokenizer_is_refused():
    class Slow(PreTrainedTokenizerBase):
        pass

    with pytest.raises(TokenizerError, match=r"Slow .* is not a fast tokenizer.*tokenizer.json"):
        token_bytes(Slow())


def test_what_is_no_tokenizer_is_refused():
    with pytest.raises(TokenizerError, match=r"str .* is not a fast tokenizer"):
        TextEncoder("Qwen/Qwen3-8B")


def test_a_table_is_built_once():
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer("gemma3").backend_tokenizer)
    assert token_bytes(tokens) is token_bytes(tokens)
