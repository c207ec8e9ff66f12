# Everything runs in .venv, which the first target that needs it makes. Set-up goes in steps, each
# with a stamp, so that it is done once and an interrupted one goes on where it stopped.

PYTHON ?= python3
ARGS ?=
# What the figures in README and CI ran with; pyproject.toml says what is allowed.
TORCH ?= torch==2.15.0 torchvision==0.29.2

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check --progress-bar off --quiet
SOURCES := $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
EMULATION := $(wildcard tests/emulation/*)

.PHONY: help demo doctor test test-slow test-asan bench resources docs release lint format clean

help:
	@echo "make demo       train a small CLIP on real handwriting and test it zero-shot"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take minutes"
	@echo "make test-asan  run the C++ kernels' tests under AddressSanitizer"
	@echo "make bench      measure against open_clip on this machine"
	@echo "make resources  what the GPU kernels compile to, without a GPU: docs/gpu-evidence.md"
	@echo "make docs       build the documentation into build/site"
	@echo "make doctor     what this machine has, and which backend serves what"
	@echo "make release    sdist and wheel in dist/, checked and tested"
	@echo "make lint       ruff, clang-format and mypy; make format mends what they can"
	@echo "make clean      remove .venv and everything built"

demo: $(VENV)/.installed
	$(RUN) -m clipfast demo $(ARGS)

doctor: $(VENV)/.installed
	$(RUN) -m clipfast doctor

# As the command line does for itself: tests that run two processes must not spin against each other.
test test-slow: export GOMP_SPINCOUNT = 5000
# A process for each core, of one thread: with more each waits for the other's, for twice the time.
# Tests of one file share a process, for what they have in common.
test test-slow: export OMP_NUM_THREADS = 1
PYTEST := $(RUN) -m pytest -n logical --maxprocesses 8 --dist loadfile

test: $(VENV)/.dev
	$(PYTEST) -m "not slow" $(ARGS)
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels -k "triton and not compiles" --dist worksteal $(ARGS)

test-slow: $(VENV)/.dev
	$(PYTEST) -m slow $(ARGS)

# The C++ under AddressSanitizer and UBSan, built beside the installed one; Python itself leaks.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
ASAN := build/asan

test-asan: $(VENV)/.dev
	CFLAGS="$(SANITIZE)" CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
		$(RUN) setup.py --quiet build --build-lib $(ASAN) --build-temp $(ASAN)-objects
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(ASAN) \
		$(RUN) -m pytest tests/kernels -k "cpu or instruction_set" $(ARGS)

bench: $(VENV)/.dev
	$(RUN) -m clipfast bench --budget none --json bench/results/latest.json $(ARGS)

# Registers, spills, shared memory, occupancy and instructions of every GPU kernel, without a GPU.
resources: $(VENV)/.dev
	$(RUN) -m clipfast_bench.gpu

# A warning is an error. The pictures of docs/kernels.md: python docs/pictures/draw.py.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

release: $(VENV)/.dev
	rm -rf dist
	$(RUN) -m build --no-isolation --outdir dist
	$(RUN) -m twine check --strict dist/*
	$(VENV)/bin/auditwheel show dist/*.whl
	$(RUN) -m pytest tests/release --release dist $(ARGS)
	ls -l dist

lint: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(SOURCES) $(EMULATION)
	$(RUN) -m mypy

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	$(VENV)/bin/clang-format -i $(SOURCES) $(EMULATION)

clean:
	rm -rf $(VENV) build *.egg-info kernels/clipfast_kernels/*.so kernels/clipfast_kernels/_build.json

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: $(PYTHON) is Python %d.%d; expected 3.11 or newer: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "set-up 1/4: $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.made
	@echo "set-up 2/4: torch (some minutes; about 3 GB)"
	$(PIP) "setuptools>=77" $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(SOURCES)
	@echo "set-up 3/4: clipfast, its dependencies and its C++ extension"
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "set-up 4/4: what the tests need"
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@
