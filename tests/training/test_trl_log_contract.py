"""What TRL shows and writes down is as we expect it."""

import inspect
from typing import get_type_hints

from trl import DistillationConfig

from tests.training.runs import shared_tokenizers
from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.training import trl_compat
from trl_xtok.training.model_card import VERSIONS
from trl_xtok.training.trl_compat import GKDTrainer


def test_the_completions_table_of_trl_takes_what_we_pass(capsys):
    assert list(inspect.signature(trl_compat.print_prompt_completions_sample).parameters) == [
        *("prompts", "completions", "rewards", "advantages", "step", "num_samples", "extra")
    ]
    figures = {"reverse_kl_per_byte": [0.125, float("nan")], "coverage": [1.0, 0.5]}
    trl_compat.print_prompt_completions_sample(["Hi", "You"], ["a", "b"], figures, None, "3 (eval)")
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("Step 3 (eval)", "0.12", "nan", "0.50"))


def test_the_distillation_trainer_of_trl_names_its_log_arguments_as_we_do():
    ours, theirs = CrossTokenizerGKDConfig, DistillationConfig
    for name in ("log_completions", "num_completions_to_print", "log_unique_prompts"):
        # The parser of arguments writes into the fields' own types.
        assert get_type_hints(ours)[name] == get_type_hints(theirs)[name]
        assert ours.__dataclass_fields__[name].default == theirs.__dataclass_fields__[name].default


def test_the_model_card_of_trl_lists_versions_once(make_trainer, tmp_path):
    trainer = make_trainer(arguments=shared_tokenizers())
    GKDTrainer.create_model_card(trainer, model_name="mine")
    assert (tmp_path / "README.md").read_text().count(VERSIONS) == 1
