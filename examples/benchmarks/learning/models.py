"""Tokenizers and models of the experiment: small Llamas, trained from scratch on a task."""

import json
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import real_tokenizers

from .tasks import problems


END = "<|im_end|>"
# A turn is its text; GOLD reads conversations.
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}" + END + "{% endif %}{% endfor %}"
)
# Solutions that tokenizers are trained on or trimmed to.
TEXTS = 4000
STUDENT = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3}
TEACHER = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}


def tokenizers(task: str) -> dict[str, PreTrainedTokenizerFast]:
    """The tokenizers of student and teacher."""
    texts = [problem.prompt + problem.solution for problem in islice(problems(task, "texts", held_out=False), TEXTS)]
    if task == "digits":
        return {"student": _trained(texts, r"\p{N}{1,3}", 800), "teacher": _trained(texts, r"\p{N}", 500)}
    return {"student": trimmed(real_tokenizers.smollm2(), texts), "teacher": trimmed(real_tokenizers.qwen3(), texts)}


def _trained(texts: Iterable[str], numbers: str, size: int) -> PreTrainedTokenizerFast:
    """A ByteLevel BPE tokenizer that cuts numbers as the pattern says."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"{numbers}| ?\p{{L}}+| ?[^\s\p{{L}}\p{{N}}]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return _finished(backend)


def trimmed(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer with no other tokens than single bytes and those that it cuts the texts into.

    What these tokens are merged from stays too, so the texts are cut as before.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model, names = settings["model"], tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    used = {names[token_id] for ids in tokenizer(list(texts)).input_ids for token_id in ids}
    used |= {name for name in pre_tokenizers.ByteLevel.alphabet() if name in model["vocab"]}
    merges = [tuple(merge) for merge in model["merges"]]
    # A token's parts are merged before it is.
    for left, right in reversed(merges):
        if left + right in used:
            used |= {left, right}
    kept = sorted(used & model["vocab"].keys() - {END}, key=model["vocab"].__getitem__)
    model["vocab"] = {name: number for number, name in enumerate(kept)}
    model["merges"] = [[left, right] for left, right in merges if {left, right, left + right} <= used]
    settings |= {"added_tokens": [], "post_processor": None}
    backend = Tokenizer.from_str(json.dumps(settings))
    backend.add_special_tokens([END])
    return _finished(backend)


def _finished(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, chat_template=TEMPLATE, padding_side="left"
    )


def new_model(tokenizer: PreTrainedTokenizerFast, shape: dict[str, int], seed: int) -> LlamaForCausalLM:
    """A Llama with random weights and a tied head."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **shape,
        )
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save both, the folder last of all, so that one that exists is whole."""
    unfinished = folder.with_suffix(".unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    # A run that was interrupted leaves one.
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """What `save` saved."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer
