"""What is gained by asking a served teacher for scores while others are written, or while the student trains.

    python -m examples.benchmarks.overlap --url http://127.0.0.1:8000

SmolLM2-135M-Instruct in float32 continues pieces of this project's documentation, 16 of them in each optimizer step, 4
at a time; the server must have a model with its tokenizer. Steps take turns: one asks as soon as a completion is
written, one when all are, and one does so and trains on none before all have their scores.
"""

import argparse
import tempfile
from statistics import median

from datasets import Dataset
from transformers import AutoTokenizer

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.cli.demo_models import demo_model_path

from .report import machine_line, markdown_table, number
from .rollouts import make_prompts


PHASES = ("time/rollout", "time/teacher", "step_time")
ROWS = 16


WAYS = (
    "as soon as each is written",
    "when all are written",
    "when all are written, all before training",
)


class Alternating(CrossTokenizerGKDTrainer):
    """Each step asks in the next one of `WAYS`."""

    def _roll_out(self, prompts, on_written):
        later = self.state.global_step % len(WAYS)
        return super()._roll_out(prompts, (lambda written: None) if later else on_written)

    def _fix_window(self, batches, mode):
        if self.state.global_step % len(WAYS) == 2:
            self._take_scores(batches, mode)
        return super()._fix_window(batches, mode)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the server")
    parser.add_argument("--new_tokens", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--rounds", type=int, default=3, help="how often the ways take turns, after a first time")
    args = parser.parse_args()
    student = str(demo_model_path("smollm2-135m-instruct"))
    tokenizer = AutoTokenizer.from_pretrained(student)
    prompts = tokenizer.batch_decode(make_prompts(tokenizer.encode, ROWS))
    with tempfile.TemporaryDirectory() as folder:
        config = CrossTokenizerGKDConfig(
            folder,
            teacher_server_url=args.url,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ROWS // 4,
            max_new_tokens=args.new_tokens,
            max_steps=len(WAYS) * (args.rounds + 1),
            learning_rate=1e-6,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        )
        trainer = Alternating(student, student, config, train_dataset=Dataset.from_dict({"prompt": prompts}))
        trainer.train()
    logs = [log for log in trainer.state.log_history if "step_time" in log][len(WAYS) :]
    rows = [
        [way, *(number(median(log[phase] for log in logs[start :: len(WAYS)])) for phase in PHASES)]
        for start, way in enumerate(WAYS)
    ]
    print(machine_line("cpu"))
    print(markdown_table(["scores are asked for", "seconds of writing", "of waiting for scores", "of a step"], rows))


if __name__ == "__main__":
    main()
