"""A run in two processes, the teacher of one of which goes away for good (started with torchrun)."""

import os
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, TrainerCallback

from tests import real_tokenizers
from tests.serving.model_server import ModelServer
from tests.training.tiny_models import tiny_args, tiny_trainer
from trl_xtok.errors import ServerError


class Leave(TrainerCallback):
    """Closes the server of the second process after a step."""

    def __init__(self, server: ModelServer):
        self._server = server

    def on_step_end(self, args, state, control, **kwargs):
        if os.environ["RANK"] == "1" and state.global_step == 2:
            self._server.close()


def main(student: str, teacher: str, folder: str) -> None:
    """Train until it fails, and write down what was said."""
    model = AutoModelForCausalLM.from_pretrained(teacher)
    with ModelServer(model, real_tokenizers.mistral1()) as server:
        where = {"teacher_server_url": server.url, "teacher_server_timeout": 0.5}
        args = tiny_args(folder, max_steps=4, per_device_train_batch_size=1, max_new_tokens=4, **where)
        trainer = tiny_trainer(student, teacher, args, callbacks=[Leave(server)])
        try:
            trainer.train()
        except ServerError as error:
            Path(folder, f"rank{os.environ['RANK']}.txt").write_text(f"{error}\n{error.__notes__[0]}")
        trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
