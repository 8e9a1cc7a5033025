"""Gemma 3 1B learns from Qwen3-4B: a SentencePiece student of a byte-level teacher. LoRA, the teacher in 4 bits.

    pip install "trl-xtok[quantization,liger]"
    python examples/gemma_student.py

Meant for one GPU with 16 GB; not run on real hardware. Gemma needs a licence that is accepted on the Hub, and a login.
"""

from datasets import load_dataset
from peft import LoraConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


trainer = CrossTokenizerGKDTrainer(
    model="google/gemma-3-1b-it",
    teacher_model="Qwen/Qwen3-4B-Instruct-2507",
    args=CrossTokenizerGKDConfig(
        output_dir="gemma-3-1b-from-Qwen3-4B",
        load_teacher_in_4bit=True,
        learning_rate=1e-4,
        max_steps=200,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        # Gemma's vocabulary has 262,144 entries, so logits of fewer tokens fit at a time while it writes.
        generation_batch_size=8,
        max_new_tokens=256,
    ),
    train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
