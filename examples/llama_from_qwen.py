"""Llama-3.2-1B learns from Qwen3-8B: LoRA, the teacher in 4 bits.

    pip install "trl-xtok[quantization,liger]"
    python examples/llama_from_qwen.py

The same from the command line: `trl-xtok gkd --config examples/recipes/t4.yaml`. Meant for one GPU with 16 GB; not run
on real hardware. The student needs a licence that is accepted on the Hub, and a login.
"""

from datasets import load_dataset
from peft import LoraConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


trainer = CrossTokenizerGKDTrainer(
    model="meta-llama/Llama-3.2-1B-Instruct",
    teacher_model="Qwen/Qwen3-8B",
    args=CrossTokenizerGKDConfig(
        output_dir="Llama-3.2-1B-from-Qwen3-8B",
        load_teacher_in_4bit=True,
        # The student does not think before it answers, so it is scored by a teacher that does not either.
        teacher_chat_template_kwargs={"enable_thinking": False},
        learning_rate=1e-4,
        max_steps=200,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        generation_batch_size=16,
        max_new_tokens=256,
        log_completions=True,
        num_completions_to_print=2,
    ),
    train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
