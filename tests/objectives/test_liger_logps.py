import os
import subprocess
import sys
from pathlib import Path


def test_liger_equals_the_plain_formula_in_the_triton_interpreter():
    """Triton decides at import whether it compiles or interprets, so the cases need a process of their own."""
    cases = [str(Path(__file__).with_name(name)) for name in ("liger_cases.py", "liger_jsd_cases.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_neither_liger_nor_triton_is_imported_unless_used():
    code = (
        "import sys, torch; from trl_xtok.objectives import token_logps; "
        "token_logps(torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([0])); "
        "assert not {'liger_kernel', 'triton', 'trl', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
