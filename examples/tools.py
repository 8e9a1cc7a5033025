"""A student learns to call tools over several turns: Llama-3.2-3B from Qwen3-8B, LoRA, the teacher in 4 bits.

    pip install "trl-xtok[quantization,liger]"
    python examples/tools.py

Each assistant turn becomes an example: the call, and the answer after its result. What a tool wrote is read and never
trained on. Each model sees tools and calls in the notation of its own template, and on-policy the student moves
towards the notation of the teacher (docs/data_formats.md). Two conversations only show the format: bring your own.
Meant for one GPU with 24 GB; not run on real hardware.
"""

from datasets import Dataset
from peft import LoraConfig

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer


WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]


def conversation(city: str, weather: str, answer: str) -> list[dict]:
    """A question, a call, its result and the answer."""
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
    return [
        {"role": "user", "content": f"How is the weather in {city}?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "get_weather", "content": weather},
        {"role": "assistant", "content": answer},
    ]


CONVERSATIONS = [
    conversation("Paris", "sunny, 24 degrees", "It is sunny in Paris, at 24 degrees."),
    conversation("Oslo", "snow", "It is snowing in Oslo."),
]

trainer = CrossTokenizerGKDTrainer(
    model="meta-llama/Llama-3.2-3B-Instruct",
    teacher_model="Qwen/Qwen3-8B",
    args=CrossTokenizerGKDConfig(
        output_dir="Llama-3.2-3B-tools",
        load_teacher_in_4bit=True,
        teacher_chat_template_kwargs={"enable_thinking": False},
        assistant_turns="all",
        # Tools and their results are part of the prompt.
        max_length=4096,
        max_new_tokens=256,
        learning_rate=1e-4,
        max_steps=200,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=16,
        generation_batch_size=8,
    ),
    train_dataset=Dataset.from_list([{"messages": messages, "tools": TOOLS} for messages in CONVERSATIONS]),
    peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
)
trainer.train()
trainer.save_model()
