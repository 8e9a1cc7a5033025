"""Qwen3-0.6B learns from DeepSeek LLM 7B Chat: all weights of the student, the teacher in 4 bits.

    pip install "trl-xtok[quantization,liger]"
    python examples/qwen_from_deepseek.py

Meant for one GPU with 24 GB; not run on real hardware.
"""

from datasets import load_dataset

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


trainer = CrossTokenizerGKDTrainer(
    model="Qwen/Qwen3-0.6B",
    teacher_model="deepseek-ai/deepseek-llm-7b-chat",
    args=CrossTokenizerGKDConfig(
        output_dir="Qwen3-0.6B-from-DeepSeek-7B",
        load_teacher_in_4bit=True,
        # The teacher never thinks aloud, so the student is asked not to.
        chat_template_kwargs={"enable_thinking": False},
        learning_rate=2e-6,
        max_steps=500,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=8,
        generation_batch_size=16,
        max_new_tokens=256,
    ),
    train_dataset=load_dataset("trl-lib/ultrafeedback-prompt", split="train"),
)
trainer.train()
trainer.save_model()
