"""`trl-xtok gkd`: its help, its dry run, and what it says to command lines that cannot work."""

import dataclasses
import re

import pytest
import yaml
from transformers import Trainer

from trl_xtok import CrossTokenizerGKDConfig
from trl_xtok.training.config_checks import ONLY_VALUE
from trl_xtok.training.script_arguments import GKDParser


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("A trainer was built.")

    monkeypatch.setattr(Trainer, "__init__", fail)


class TestHelp:
    def test_every_argument_is_there_once_but_for_those_that_are_refused(self, trl_xtok):
        status, out, _ = trl_xtok("gkd", "--help")
        listed = re.findall(r"^  --(\w+)", out, re.MULTILINE)
        fields = {field.name for kind in GKDParser("").dataclass_types for field in dataclasses.fields(kind)}
        assert status == 0
        assert len(listed) == len({*listed})
        hidden = fields - {*listed}
        assert hidden >= {*ONLY_VALUE}
        assert {*listed} - fields == {"config", "accelerate_config"}
        assert hidden - {*ONLY_VALUE} == {
            *("parallelism_config", "torch_compile_backend", "torch_compile_mode"),
            *("do_train", "do_eval", "do_predict", "ignore_bias_buffers", "lora_task_type"),
        }

    def test_what_is_used_most_comes_first(self, trl_xtok):
        _, out, _ = trl_xtok("gkd", "-h")
        order = ["Most used:", "--model_name_or_path", "--teacher_model_name_or_path", "--load_teacher_in_4bit"]
        order += ["--dry_run", "Objective:", "--objective {auto,chunk_rkl", "Teacher:", "Adapter:", "--adam_beta1"]
        places = [out.index(f"\n{name}" if name.endswith(":") else f"  {name}") for name in order]
        assert places == sorted(places)

    def test_our_own_arguments_are_not_among_those_of_transformers(self, trl_xtok):
        _, out, _ = trl_xtok("gkd", "--help")
        rest = re.findall(r"^  --(\w+)", out.partition("Training arguments of Transformers:")[2], re.MULTILINE)
        assert not {*rest} & CrossTokenizerGKDConfig.__annotations__.keys()


@pytest.mark.usefixtures("no_training")
class TestRefusals:
    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--learning_rat", "1e-5"], "unknown argument '--learning_rat'. Did you mean '--learning_rate'?"),
            (["--num_proceses", "2"], "unknown argument '--num_proceses'. Did you mean '--num_processes'?"),
            (["--qqq"], "unknown argument '--qqq'."),
            (
                ["run.yaml"],
                "unknown argument 'run.yaml'. The flag before it takes no more values; a configuration file is `",
            ),
            (["--max_steps", "many"], "invalid int value: 'many'"),
            (["--objective", "kl"], "invalid choice: 'kl' (choose from 'auto', 'chunk_rkl'"),
            (
                ["--teacher_chat_template_kwargs", "{enable: 1}"],
                "_template_kwargs: '{enable: 1}' is not JSON",
            ),
            (["--mixed_precision", "int4"], "--mixed-precision: invalid choice: 'int4' (choose from"),
            (["--num_processes", "0"], "--num_processes must be at least 1, got 0."),
            (["--teacher_model", "x"], "Did you mean '--teacher_model_name_or_path' or '--teacher_model_"),
            (["--accelerate_config", "nope"], "Accelerate config nope is neither a file nor a valid config"),
        ],
    )
    def test_wrong_usage(self, trl_xtok, base, argv, said):
        status, out, err = trl_xtok("gkd", *base, *argv)
        assert (status, out) == (2, "")
        assert said in err
        assert "`trl-xtok gkd --help` lists all arguments." in err
        # No usage of two hundred flags.
        assert len(err.splitlines()) <= 3

    @pytest.mark.parametrize(
        ("left_out", "said"),
        [
            ("--model_name_or_path", "there is no student"),
            ("--teacher_model_name_or_path", "there is no teacher"),
            ("--dataset_name", "there is no dataset"),
        ],
    )
    def test_what_a_run_needs(self, trl_xtok, base, left_out, said):
        place = base.index(left_out)
        status, _, err = trl_xtok("gkd", *base[:place], *base[place + 2 :])
        assert status == 2
        assert said in err

    @pytest.mark.parametrize(
        ("argv", "said"),
        [
            (["--model_name_or_path", "no/such-model"], "The tokenizer of 'no/such-model' cannot be loaded"),
            (["--teacher_model_name_or_path", "/no/folder"], "There is no folder '/no/folder'"),
            (["--dataset_name", "no/such-data"], "The dataset 'no/such-data' cannot be loaded"),
            (["--dataset_name", "prompt.jsonl"], "There is no file or folder 'prompt.jsonl'"),
            (["--dataset_train_split", "validation"], "splits train, and none of them is 'validation'"),
            (["--max_new_tokens", "200"], "leaves no room for a prompt within `max_length=128`"),
            (["--lora_r", "8"], "`--lora_r 8` has no effect without `--use_peft`"),
            (["--load_in_4bit"], "`--load_in_4bit` without `--use_peft` leaves nothing to train"),
            (["--load_in_4bit", "--use_peft", "--dtype", "auto"], "leaves open the precision"),
            (["--model_init_kwargs", '{"dtype": "float16"}', "--dtype", "bfloat16"], "contradict each other"),
            (["--packing"], "`packing=True` is not supported"),
            (["--do_predict"], "`--do_predict True` has no effect"),
            (["--streaming"], "has no effect without `datasets`"),
            (["--dataset_streaming", "--max_steps", "-1"], "A stream does not say how long it is"),
            (["--load_best_model_at_end", "--eval_strategy", "epoch"], "--load_best_model_at_end requires"),
            (["--accelerate_config", "zero3"], "The run is launched with DeepSpeed ZeRO stage 3"),
            (["--use_fsdp", "--fsdp_version", "1"], "The run is launched with FSDP of version 1"),
            (["--accelerate_config", "fsdp1"], "The run is launched with FSDP of version 1"),
            (["--fsdp", "--dry_run"], "has 1 process(es) on cpu"),
            (["--accelerate_config", "zero3", "--dry_run"], "The run is launched with DeepSpeed ZeRO stage 3"),
            (["--output_dir", __file__], "is a file. Give the path of a folder"),
            (["--use_peft", "--lora_r", "0", "--dry_run"], "The adapter does not fit LlamaForCausalLM"),
            (["--multi_gpu", "--num_processes", "1"], "You need to use at least 2 processes to use `--multi_gpu`"),
        ],
    )
    def test_input_that_cannot_be_used(self, trl_xtok, base, argv, said):
        status, _, err = trl_xtok("gkd", *base, *argv)
        assert status == 1
        # Progress bars may stand before it, but no traceback.
        assert "trl-xtok gkd: error: " in err
        assert "Traceback" not in err
        assert said in err

    @pytest.mark.parametrize(
        ("text", "status", "said"),
        [
            ("- a\n- b", 1, "must be a YAML mapping"),
            ("a: [", 1, "is not YAML"),
            ("env: here", 1, "`env` in"),
            ("learning_rat: 1.0e-5", 2, "unknown key 'learning_rat'. Did you mean 'learning_rate'?"),
            ("max_steps: 1.5", 2, "`max_steps` must be a whole number, got 1.5"),
            ("seed: many", 2, "invalid int value: 'many'"),
            ("learning_rate: [1, 2]", 2, "`learning_rate` must be a number, got [1, 2]"),
            ("objective: kl", 2, "`objective` must be one of auto, chunk_rkl"),
            ("save_strategy: no", 2, "`save_strategy` must be text (YAML reads a bare no"),
            ("datasets: [{pth: x}]", 1, "unexpected keyword argument 'pth'"),
        ],
    )
    def test_configuration_files(self, trl_xtok, base, tmp_path, text, status, said):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        found, _, err = trl_xtok("gkd", *(() if "datasets" in text else base), f"--config={path}")
        assert found == status
        assert said in err

    def test_a_configuration_file_that_is_not_there(self, trl_xtok):
        assert trl_xtok("gkd", "--config", "nope.yaml").err == (
            "trl-xtok gkd: error: `--config nope.yaml`: there is no such file. Give the path of a YAML file.\n"
        )
        assert "the path of one YAML file, once" in trl_xtok("gkd", "--config").err


@pytest.mark.usefixtures("no_training")
def test_a_dry_run_shows_what_would_be_done(trl_xtok, base, tmp_path, student_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1.0e-3\nlora_target_modules: [q_proj]\ngradient_accumulation_steps: 4\n")
    argv = (*base, "--config", path, "--use_peft", "--learning_rate", "3e-4", "--hub_token", "secret")
    status, out, err = trl_xtok("gkd", *argv, "--dry_run")
    assert status == 0, err
    shown = yaml.safe_load(out.split("─\n", 1)[1].split("\n─")[0])
    assert shown["learning_rate"] == 3e-4
    assert shown["lora_target_modules"] == "q_proj"
    assert "secret" not in out
    for text in ("LoRA of rank 16", "chunk_rkl", "8 rows", "8, each answered with at most 6 tokens", "Nothing was"):
        assert text in out
    assert not (tmp_path / "out").exists()


def test_a_dry_run_does_not_ask_a_server(trl_xtok, base):
    status, out, err = trl_xtok(
        "gkd", *base, "--teacher_server_url", "http://127.0.0.1:9", "http://a:1/v1", "--dry_run"
    )
    assert status == 0, err
    assert "served by http://127.0.0.1:9, http://a:1 (which was not asked)" in " ".join(out.split())
    assert "The teacher is behind a server" in out


def test_a_dry_run_refuses_names_of_teachers_as_a_run_does(trl_xtok, base):
    for more in ((), ("--dry_run",)):
        status, _, err = trl_xtok("gkd", *base, "--teacher_weights", '{"books": 2.0}', *more)
        assert status != 0
        assert "`args.teacher_weights` is a dictionary with 'books', which is for several teachers" in err


class TestSeveralTeachers:
    def test_a_dry_run_shows_each(self, trl_xtok, base, two_teachers):
        where = [
            "--teacher_server_url",
            '{"code": ["http://a:1", "http://a:2/v1"]}',
            "--teacher_weights",
            '{"code": 2}',
        ]
        status, out, err = trl_xtok("gkd", *base, *two_teachers, *where, "--dry_run")
        assert status == 0, err
        text = " ".join(out.split())
        assert "served by http://a:1, http://a:2 (which was not asked)" in text
        assert "(Gemma3Text), unquantized" in text
        assert "Tokenizers of student and math" in text and "Tokenizers of student and code" in text
        assert "Not known: Of 2 teachers, math would be loaded here" in text
        shown = yaml.safe_load(out.split("─\n", 1)[1].split("\n─")[0])
        assert shown["teacher_server_url"] == {"code": ["http://a:1", "http://a:2"]}
        assert shown["teacher_model_name_or_path"].keys() == {"math", "code"}

    def test_without_one_that_is_loaded_the_memory_is_known(self, trl_xtok, base, two_teachers):
        where = ["--teacher_server_url", '{"code": "http://a:1", "math": "http://a:2"}', "--dry_run"]
        status, out, err = trl_xtok("gkd", *base, *two_teachers, *where)
        assert status == 0, err
        assert "The teacher is behind a server" in out

    @pytest.mark.parametrize(
        ("argv", "status", "said"),
        [
            (
                ["--teacher_model_name_or_path", "{math: X}"],
                2,
                "argument --teacher_model_name_or_path: '{math: X}' is not",
            ),
            (["--teacher_server_url", '{"math": '], 2, "argument --teacher_server_url: '{\"math\": ' is not JSON"),
            (["--teacher_server_url", '{"math": "nowhere"}'], 1, "'nowhere' is not the address of a server"),
            (["--teacher_server_url", '{"maths": "http://a:1"}'], 1, "['maths'], but with several teachers"),
            (["--teacher_server_url", "http://a:1"], 1, "is list, but with several teachers it must be a dictionary"),
            (
                ["--teacher_server_url", '{"math": "http://a:1"}', "--teacher_server_model", '{"code": "x"}'],
                1,
                "for math",
            ),
            (["--teacher_model_name_or_path", '{"math": null}'], 1, "'math' is None. Give its model, its name"),
            (["--teacher_model_name_or_path", '{"math": {}}'], 1, "has {} for 'math', which must be one name"),
            (["--teacher_model_name_or_path", '{"math": "/no/folder"}'], 1, "There is no folder '/no/folder'"),
            (["--dataset_name", "prompts.jsonl"], 1, "A row has prompt, but no `teacher` column"),
            (
                ["--dataset_train_split", "train[:1]"],
                1,
                "No row of `train_dataset` has 'code' in its `teacher` column",
            ),
            (["--objective", "prefix_jsd"], 1, "is defined for one teacher, but there are 2: math, code"),
        ],
    )
    @pytest.mark.usefixtures("no_training")
    def test_input_that_cannot_be_used(self, trl_xtok, base, two_teachers, prompts_path, argv, status, said):
        argv = [str(prompts_path) if part == "prompts.jsonl" else part for part in argv]
        for more in ((), ("--dry_run",)):
            found, _, err = trl_xtok("gkd", *base, *two_teachers, *argv, *more)
            assert (found, "Traceback" in err) == (status, False)
            assert said in err

    @pytest.mark.parametrize("command", ["plan", "audit"])
    def test_other_commands_take_one(self, trl_xtok, student_path, two_teachers, command):
        status, _, err = trl_xtok(command, student_path, two_teachers[-1])
        assert status == 1
        assert "names several models" in err and "this command takes one" in err


def test_a_server_that_is_not_there_is_one_line(trl_xtok, base):
    where = ["--teacher_server_url", "http://127.0.0.1:9", "--teacher_server_timeout", "0.2"]
    status, _, err = trl_xtok("gkd", *base, *where)
    assert status != 0
    assert "GET http://127.0.0.1:9/v1/models was not answered within 0.2 seconds" in err.splitlines()[-1]
