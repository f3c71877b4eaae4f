# `make demo` and `make test` do everything on a machine with Python 3.10 or newer, nothing else.
# Where there is a C++ compiler, and nvcc, they build the compiled backend too: docs/building.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CSRC := $(shell find csrc -type f)
# A process a core; more than eight take more memory than they save time.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-all test-matrix wheel lint clean

demo: $(VENV)/.built
	$(BIN)/garevla demo

test: $(VENV)/.built lint
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.built lint
	$(PYTEST)

# An environment for each supported pair of torch and Triton, one after the other: an hour.
test-matrix:
	$(PYTHON) -m tests.matrix

# One wheel for every supported torch and Python; with CUDA kernels where there is an nvcc.
wheel:
	GAREVLA_NATIVE=force GAREVLA_CUDA_ARCHITECTURES="80;86;90;100;120" \
		$(PYTHON) -m pip wheel --no-deps --wheel-dir dist .

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

# First the packages, then the backend, which changes more often.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	GAREVLA_NATIVE=skip $(BIN)/pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.built: $(VENV)/.installed setup.py $(CSRC)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs dist garevla/_native*.so garevla/_native_build.json
