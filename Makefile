# Every target sets up what it needs and is safe to run twice. VENV=/path uses another environment, PYTHON=python3.11
# another interpreter, LIMIT=n fewer demo questions, WORKERS=n test processes.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
LIMIT ?=
WORKERS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) + 1)))
IMAGE ?= docs/images/scene.png
QUERY ?= What color is the star?
# One environment that grows; each stamp says what is in it.
BASE := $(VENV)/.llava-flowcut
DEMO := $(VENV)/.llava-flowcut-demo
DEV := $(VENV)/.llava-flowcut-dev
DECLARED := pyproject.toml constraints.txt
EVERYTHING := .[demo,dev]
install = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'

.DEFAULT_GOAL := help
.PHONY: help quick demo test check docs setup clean-demo test-vllm

help:
	@echo "make quick    ask a small trained LLaVA one question with 576 and with 64 visual tokens, side by side"
	@echo "make demo     evaluate it at 576, 192, 128, 64 and 32 visual tokens and print the table"
	@echo "make test     lint, check types, run the tests"
	@echo "make docs     build the documentation into site/"
	@echo "make table1   a table of the paper, 1 to 11: make table1 MODEL=liuhaotian/llava-v1.5-7b (or MODEL=embedded)"
	@echo "make test-vllm, make check, make clean-demo"
	@echo
	@echo "Each sets up $(VENV) with what it needs: quick torch, transformers and small packages, demo and test more."
	@echo "On two cores quick takes one to two minutes with the installation, demo six to ten, test fourteen."
	@echo "Settings: VENV=path PYTHON=python3.11 LIMIT=60 (demo) WORKERS=4 (test) IMAGE=file QUERY='...' (quick)"

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	    { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; give another one: make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(BASE): $(DECLARED) | $(PY)
	@echo "installing torch, transformers and small packages into $(VENV); torch is the largest part, see below"
	$(call install,.)
	@touch $@

$(DEMO): $(DECLARED) | $(PY)
	$(call install,.[demo])
	@touch $@ $(BASE)

$(DEV): $(DECLARED) | $(PY)
	$(call install,$(EVERYTHING))
	@touch $@ $(DEMO) $(BASE)

setup: $(DEV)

quick: $(BASE)
	@$(PY) -m flowcut compare --image "$(IMAGE)" --query "$(QUERY)" --budget 576 64 --out results/demo/quick.png
	@du -sh $(VENV) | awk '{print "the environment takes " $$1 "; make demo measures accuracy, make lists more"}'

demo: $(DEMO)
	@$(PY) -m scripts.demo $(if $(LIMIT),--limit $(LIMIT))

test: check
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

# vLLM's CPU build and the plug-in in integrations/vllm, in an environment of their own: .venv-vllm. ARGS="-k qwen".
test-vllm:
	VENV=$(VENV)-vllm bash scripts/ci/vllm.sh $(ARGS)

check: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m scripts.architecture --check
	$(PY) -m scripts.methods --check

docs: $(DEV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

# The paper's tables: make table1 MODEL=liuhaotian/llava-v1.5-7b; MODEL=embedded for the small model; FLAGS="--limit 200".
# DRY=1 runs nothing and lists every missing file of the table's benchmarks.
table%: $(DEV)
	$(PY) -m scripts.tables.make $* $(if $(MODEL),--model-path $(MODEL)) $(if $(DRY),--dry-run) $(FLAGS)

clean-demo:
	rm -rf results/demo playground/data/embedded
