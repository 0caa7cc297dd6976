# `make demo` and `make test` set up what they need and are safe to run twice. VENV=/path uses another environment,
# LIMIT=n fewer demo questions, WORKERS=n test processes, PYTHON=python3.11 another interpreter.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.llava-flowcut
LIMIT ?=
WORKERS ?= auto

.PHONY: demo test check docs setup clean-demo test-vllm

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

demo: setup
	@$(PY) -m scripts.demo $(if $(LIMIT),--limit $(LIMIT))

test: check
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

# vLLM's CPU build and the plug-in in integrations/vllm, in an environment of their own: .venv-vllm. ARGS="-k qwen".
test-vllm:
	VENV=$(VENV)-vllm bash scripts/ci/vllm.sh $(ARGS)

check: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m scripts.architecture --check
	$(PY) -m scripts.methods --check

docs: setup
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# The paper's tables: make table1 MODEL=liuhaotian/llava-v1.5-7b; MODEL=embedded for the small model; FLAGS="--limit 200".
table%: setup
	$(PY) -m scripts.tables.make $* $(if $(MODEL),--model $(MODEL)) $(FLAGS)

clean-demo:
	rm -rf results/demo playground/data/embedded
