"""What is gained by asking a served teacher for scores while others are written, or while the student trains.

    python -m examples.benchmarks.overlap --url http://127.0.0.1:8000
    python -m examples.benchmarks.overlap --url http://127.0.0.1:8000 --teacher gemma-3-270m --dataset

SmolLM2-135M-Instruct in float32 continues pieces of this project's documentation, 16 of them in each optimizer step, 4
at a time; the server must have a model with the tokenizer of the teacher. Steps take turns: one asks as soon as a
completion is written, one when all are, and one does so and trains on none before all have their scores. With
`--dataset` nothing is written: the rows have the documentation's own continuations, and the first way is left out.
"""

import argparse
import tempfile
from statistics import median

from datasets import Dataset
from transformers import AutoTokenizer

from trl_xtok import CrossTokenizerGKDConfig, CrossTokenizerGKDTrainer
from trl_xtok.cli.demo_models import demo_model_path

from .arguments import at_least_one
from .report import machine_line, markdown_table, number
from .rollouts import make_prompts


MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
PHASES = ("time/rollout", "time/teacher", "step_time")
ROWS = 16


AT_ONCE = "as soon as each is written"
LATER = "when all are written"
BEFORE = "when all are written, all before training"


class Alternating(CrossTokenizerGKDTrainer):
    """Each step asks in the next one of `ways`."""

    ways = (AT_ONCE, LATER, BEFORE)

    def _way(self):
        return self.ways[self.state.global_step % len(self.ways)]

    def _roll_out(self, prompts, on_written):
        return super()._roll_out(prompts, on_written if self._way() == AT_ONCE else lambda written: None)

    def _fix_window(self, batches, mode):
        if self._way() == BEFORE:
            self._take_scores(batches, mode)
        return super()._fix_window(batches, mode)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="address of the server")
    parser.add_argument("--teacher", choices=MODELS, default=MODELS[0], help="whose tokenizer the server's model has")
    parser.add_argument("--new_tokens", type=at_least_one, default=32, help="tokens of a completion")
    parser.add_argument("--dataset", action="store_true", help="completions of the dataset instead of the student's")
    parser.add_argument(
        "--rounds", type=at_least_one, default=3, help="how often the ways take turns, after a first time"
    )
    args = parser.parse_args()
    student, teacher = (str(demo_model_path(name)) for name in (MODELS[0], args.teacher))
    tokenizer = AutoTokenizer.from_pretrained(student)
    new = args.new_tokens
    if args.dataset:
        Alternating.ways = (LATER, BEFORE)
        settings, prefix = {"lmbda": 0.0, "objective": "chunk_jsd"}, "off_policy/"
        pieces = make_prompts(tokenizer.encode, ROWS, following=new)
        columns = {"prompt": [ids[:-new] for ids in pieces], "completion": [ids[-new:] for ids in pieces]}
    else:
        settings, prefix, columns = {}, "", {"prompt": make_prompts(tokenizer.encode, ROWS)}
    dataset = Dataset.from_dict({name: tokenizer.batch_decode(ids) for name, ids in columns.items()})
    with tempfile.TemporaryDirectory() as folder:
        config = CrossTokenizerGKDConfig(
            folder,
            teacher_server_url=args.url,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=ROWS // 4,
            max_new_tokens=new,
            max_steps=len(Alternating.ways) * (args.rounds + 1),
            learning_rate=1e-6,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            **settings,
        )
        trainer = Alternating(student, teacher, config, train_dataset=dataset)
        trainer.train()
    logs, count = [log for log in trainer.state.log_history if f"{prefix}step_time" in log], len(Alternating.ways)
    rows = [
        [way, *(number(median(log[prefix + phase] for log in logs[count + start :: count])) for phase in PHASES)]
        for start, way in enumerate(Alternating.ways)
    ]
    print(machine_line("cpu"))
    print(markdown_table(["scores are asked for", "seconds of writing", "of waiting for scores", "of a step"], rows))


if __name__ == "__main__":
    main()
