"""A student without reasoning learns to think before it answers: Llama-3.2-1B from Qwen3-4B, LoRA, 4 bits.

    pip install "trl-xtok[quantization,liger]"
    python examples/thinking_teacher.py

In half of the optimizer steps the teacher writes, with its reasoning, and the student learns to write such text; in
the others the student writes, and the teacher scores its reasoning, too. `<think>` is a token of Qwen and plain text
for Llama; the two are aligned by their bytes. Reasoning is long: watch `completions/clipped_ratio`. Meant for one GPU
with 24 GB; not run on real hardware.
"""

from datasets import load_dataset
from peft import LoraConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


trainer = CrossTokenizerGKDTrainer(
    model="meta-llama/Llama-3.2-1B-Instruct",
    teacher_model="Qwen/Qwen3-4B",
    args=CrossTokenizerGKDConfig(
        output_dir="Llama-3.2-1B-thinking",
        load_teacher_in_4bit=True,
        teacher_chat_template_kwargs={"enable_thinking": True},
        lmbda=0.5,
        seq_kd=True,
        # It holds for the teacher's completions as well as for the student's.
        objective="prefix_jsd",
        crossentropy_weight=0.5,
        max_length=4096,
        max_new_tokens=2048,
        learning_rate=1e-4,
        max_steps=500,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=16,
        generation_batch_size=8,
    ),
    train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
    peft_config=LoraConfig(r=32, lora_alpha=64, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
