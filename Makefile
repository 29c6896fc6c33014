.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all mutants format lint type imports check tables bench bench-quick bench-gpu docs docs-quick build clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
READY := $(VENV)/.ready
export HF_HUB_OFFLINE := 1
export WANDB_MODE := offline
export TOKENIZERS_PARALLELISM := false
# The tests run two at a time: a thread each, or they fight for the cores.
test test-all: export OMP_NUM_THREADS := 1

help:  ## Show what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 14

setup: $(READY)  ## Make the virtual environment and install everything

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: setup  ## Go the whole way on the embedded defaults: assemble, align, train, export, evaluate
	$(BIN)/python -m vlmkit.demo

test: setup  ## Run the tests (without the slow ones)
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu" -q

test-all: setup  ## Run every test that this machine can run
	$(BIN)/python -m pytest -n 2 -m "not gpu" -q
	$(BIN)/python scripts/mutants.py --sample 6

mutants: setup  ## Edit the code harmfully, one place at a time, and see that a test notices each (half an hour)
	$(BIN)/python scripts/mutants.py

format: setup  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## Check style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: setup  ## Check types
	$(BIN)/pyright

imports: setup  ## Check that imports point down the rooms
	$(BIN)/lint-imports

check: lint type imports  ## Everything that needs no run

tables: setup  ## Write the README's tables and docs/errors.md anew
	$(BIN)/python scripts/tables.py

bench-quick: setup  ## See that every measurement runs, with small sizes
	for script in bench/*.py; do echo "== $$script"; $(BIN)/python $$script --quick || exit 1; done

bench: setup  ## Print the measurements (minutes)
	for script in $(filter-out bench/gpu.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-gpu: setup  ## Measure everything of bench/gpu.md on the GPU that is here; writes runs/bench-gpu (an hour)
	$(BIN)/python bench/gpu.py

docs: setup  ## Build the documentation into site/, the notebooks with what they show (minutes)
	$(BIN)/python scripts/notebooks.py
	$(BIN)/python -m mkdocs build --strict

docs-quick: setup  ## The same without running the notebooks
	$(BIN)/python -m mkdocs build --strict

build: setup  ## Build wheel and sdist
	$(BIN)/python -m build --outdir dist

clean:  ## Remove what was made
	rm -rf $(VENV) dist build site runs .pytest_cache .ruff_cache
