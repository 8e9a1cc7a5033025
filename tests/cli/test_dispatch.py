"""The commands: their help is quick, and what is wrong with a command line is said in a line."""

import subprocess
import sys
import time

import pytest


def seconds(*command: str, rounds: int = 3) -> float:
    """Least time that a command takes, of several rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def test_the_help_takes_less_than_a_second_and_a_half():
    assert seconds("-m", "trl_xtok.cli", "--help") < 1.5


@pytest.mark.slow
def test_the_help_of_gkd_costs_half_a_second_beside_the_import():
    imported = seconds("-W", "ignore", "-c", "from trl.experimental.gkd import GKDConfig")
    assert seconds("-m", "trl_xtok.cli", "gkd", "--help") < imported + 0.5


def test_no_command_needs_torch_before_it_runs():
    code = "import sys, trl_xtok.cli; print(sorted({'torch', 'trl', 'transformers', 'rich'} & sys.modules.keys()))"
    output = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True)
    assert output.stdout.strip() == "[]"


def test_the_help_names_all_commands(trl_xtok):
    status, out, _ = trl_xtok("--help")
    assert status == 0
    for command in ("gkd", "audit", "plan", "report", "demo", "env"):
        assert f"\n    {command} " in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("gdk",), "invalid choice: 'gdk'"),
        (("demo", "--max_step", "3"), "unknown argument '--max_step'. Did you mean '--max_steps'?"),
        (("demo", "--max_steps", "few"), "invalid int value: 'few'"),
        (("audit", "a", "b", "--txt", "hi"), "unknown argument '--txt'. Did you mean '--text'?"),
        (("plan", "a", "b", "--learning_rate", "1"), "unknown argument '--learning_rate'.\n"),
        (("env", "now"), "unknown argument 'now'."),
    ],
)
def test_wrong_usage(trl_xtok, argv, said):
    status, _, err = trl_xtok(*argv)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 2, "What is wrong, and where the help is; no usage."


@pytest.mark.parametrize("argv", [("--max_steps", "0"), ("--seed", "-1")])
def test_a_demo_of_nothing_is_refused(trl_xtok, argv):
    status, _, err = trl_xtok("demo", *argv)
    assert status == 1
    assert err.startswith(f"trl-xtok demo: error: `{argv[0]}` must be at least ")


def test_the_environment(trl_xtok):
    status, out, _ = trl_xtok("env")
    assert status == 0
    for line in ("- trl: 1.16", "- torch: 2.", "- Device: cpu", "- Precision by default: float32", "- 4-bit models: "):
        assert line in out
