"""What the documentation names and cannot be had here: models and datasets of the Hub, and the time for a whole run.

Under the names of the models, a cache of the Hub gets tiny random models with real tokenizers, so that
`from_pretrained` finds them as it would find what was downloaded before. Datasets of the Hub are a few prompts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests import real_tokenizers
from tests.training.tiny_models import save, tiny_model
from trl_xtok import CrossTokenizerGKDConfig


# Those of 4-bit kernels are a multiple of 64 wide. The pages are not about these tokenizers, so small ones do.
_WIDE = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 32}
MODELS: dict[str, tuple[str, Callable[[], PreTrainedTokenizerFast]]] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", real_tokenizers.smollm2),
    "google/gemma-3-270m": ("gemma3", real_tokenizers.mistral1),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", real_tokenizers.smollm2),
    "Qwen/Qwen3-8B": ("gemma3", real_tokenizers.mistral1),
}
DATASETS = {"trl-lib/ultrafeedback-prompt"}
# A step that takes no time; random models write what cannot be scored.
SHORT = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_new_tokens": 4,
    "min_coverage": 0.0,
    "disable_tqdm": True,
}
_COMMIT = "0" * 40


def fill_hub_cache(folder: Path) -> None:
    """Put every model of `MODELS` where the libraries of Hugging Face keep downloads."""
    for name, (family, tokenizer) in MODELS.items():
        repository = folder / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(_COMMIT)
        save(
            tiny_model(family, len(tokenizer()), max_position_embeddings=4096, **_WIDE),
            tokenizer(),
            repository / "snapshots" / _COMMIT,
        )


def short_config(**arguments: Any) -> CrossTokenizerGKDConfig:
    """The arguments of a page, which must be valid, made short."""
    CrossTokenizerGKDConfig(**arguments)
    # Another name of `max_new_tokens`.
    arguments.pop("max_completion_length", None)
    return CrossTokenizerGKDConfig(**{**arguments, **SHORT})


def load_stand_in(path: str, *args: Any, **kwargs: Any) -> Any:
    """A few prompts for a dataset of the Hub; files are read as always."""
    if path not in DATASETS:
        return load_dataset(path, *args, **kwargs)
    return Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ("Hi", "2 + 2?", "Why?")]})


def leave_a_run(folder: Path) -> None:
    """What a run with LoRA leaves: an adapter in `out/checkpoint-500`."""
    student = AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.2-1B-Instruct")
    get_peft_model(student, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(folder / "out" / "checkpoint-500")
