# `make demo` and `make test` do everything on a machine with Python 3.10 or newer, nothing else.
# Where there is a C++ compiler, and nvcc, they build the compiled backend too: docs/building.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CSRC := $(shell find csrc -type f)
# A process a core; more than eight take more memory than they save time.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all test-matrix test-sanitizers wheel lint clean

demo: $(VENV)/.built
	$(BIN)/garevla demo

test: $(VENV)/.built lint
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.built lint
	$(PYTEST)

# An environment for each of these versions of torch, one after the other: two hours.
test-matrix:
	$(PYTHON) -m tests.matrix

# The C++ tests under the address and the undefined behavior sanitizer; needs CMake.
test-sanitizers: $(VENV)/.installed
	cmake -S . -B build/sanitizers -DGAREVLA_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
		-DCMAKE_PREFIX_PATH="$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build build/sanitizers
	ctest --test-dir build/sanitizers --output-on-failure

# One wheel for every supported torch and Python; with CUDA kernels where there is an nvcc.
wheel:
	GAREVLA_NATIVE=force GAREVLA_CUDA_ARCHITECTURES="80;86;90;100;120" \
		$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

# First the packages, then the backend, which changes more often. Python compiles what it imports;
# pip would compile everything, for a minute.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	GAREVLA_NATIVE=skip $(BIN)/pip install --quiet --no-compile --editable ".[all]"
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs dist garevla/_native*.so garevla/_native_build.json
