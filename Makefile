# Needs python3 >= 3.10, a C++ compiler and make; installs everything else with pip into $(VENV).
#   make test TORCH=torch==2.12.1    with another torch
#   make test VENV=                  in the active environment, with the torch that it has

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0

ifeq ($(strip $(VENV)),)
PY := $(PYTHON)
ENVIRONMENT := $(shell $(PYTHON) -c 'import sys; print(sys.prefix)')
INSTALL_TORCH = $(PY) -c 'import torch' 2> /dev/null || { echo 'VENV= uses the torch of the active environment, which has none'; exit 1; }
else
PY := $(abspath $(VENV))/bin/python
ENVIRONMENT := $(VENV)
INSTALL_TORCH = $(PYTHON) -m venv $(VENV) && $(PIP) --upgrade pip && echo 'Installing $(TORCH)' && $(PIP) $(TORCH)
endif
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest -q
# What has been done to the environment. Another TORCH does it again.
DONE := $(ENVIRONMENT)/.routing_ext-$(shell echo '$(TORCH)' | cksum | cut -d ' ' -f 1)

CPP = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CLANG_FORMAT = $(PY) -c 'import clang_format; clang_format.clang_format()'
# The sanitizers' runtime must be loaded before all else, and before it throws, the library that throws.
SANITIZED = ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD='$(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv compile build demo test check format visdom sanitize bench bench-tiny gpu readme docs wheel clean

help:  ## lists these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(DONE): pyproject.toml
	@$(INSTALL_TORCH)
	@$(PIP) 'setuptools>=77' ninja numpy
	@touch $@

compile: $(DONE)
	@$(PY) setup.py --quiet build_ext --inplace

# Installs the package in place, with the tools of one of its extras.
$(DONE)-%: $(DONE) setup.py | compile
	@echo 'Installing what "$*" needs'
	@$(PIP) --no-build-isolation --editable '.[$*]' > build/install.log 2>&1 || { cat build/install.log; exit 1; }
	@touch $@

venv: $(DONE)-dev  ## makes the environment, with all tools

build: compile $(DONE)-dev  ## compiles what has changed

DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: compile $(DONE)-demo  ## trains a memory network on repeat-copy, and a routed network on real data
	$(PY) -m routing_ext train repeat-copy --max-num-words 4 --max-repeats 4 --steps 8000 --threads 1 --out $(DEMO)
	$(PY) -m routing_ext test $(DEMO)
	$(PY) -m routing_ext plot $(DEMO)
	$(PY) -m routing_ext bench --seconds 1
	$(PY) examples/routed_mnist.py --out demo.png
	@echo 'The memory network is in $(DEMO), its pictures in $(DEMO)/figures; that of the routed network is demo.png.'
	@echo 'Next: $(PY) -m routing_ext train copy, or train --help; tensorboard --logdir runs'

test: build check  ## runs all checks and tests
	$(PYTEST)

check: build  ## formatters, linters, types, and which folder may name what
	$(PY) -m ruff format --quiet --check .
	$(PY) -m ruff check --quiet .
	$(PY) -m mypy
	@echo clang-format --dry-run -Werror csrc tests
	@$(CLANG_FORMAT) --dry-run -Werror $(CPP)
	$(PYTEST) tests/test_layering.py

format: build  ## brings all sources into the form that `check` asks for
	$(PY) -m ruff check --quiet --fix-only .
	$(PY) -m ruff format --quiet .
	@$(CLANG_FORMAT) -i $(CPP)

visdom: build  ## a Visdom server for the tests, with what its page loads (from npm)
	@echo 'setuptools<81' > build/visdom-constraint.txt
	$(PIP) --build-constraint build/visdom-constraint.txt visdom 'tornado<6.5'
	$(PY) tests/training/visdom_scripts.py

sanitize: build  ## the operator tests under AddressSanitizer and UBSan
	ROUTING_EXT_SANITIZE=1 ROUTING_EXT_CUDA=0 $(PY) setup.py --quiet build --build-lib build/sanitized
	@# Not from the root: there, routing_ext would be the one without sanitizers.
	cd build/sanitized && $(SANITIZED) $(PY) -c 'import routing_ext; assert routing_ext.build_info()["sanitize"]'
	cd build/sanitized && $(SANITIZED) $(PYTEST) -k 'not compile and not gradcheck and not opcheck' ../../tests/ops
	cd build/sanitized && ROUTING_EXT_ISA=baseline $(SANITIZED) $(PYTEST) -k 'not compile' ../../tests/ops/test_grouped_linear.py
	$(PYTEST) --sanitize -k sanitized tests/emulated

bench: build  ## the benchmarks; results go to benchmarks/results
	$(PY) -m benchmarks.run

bench-tiny: build  ## whether every benchmark works, on small inputs
	$(PYTEST) benchmarks --tiny

gpu: $(DONE)  ## on a machine with a GPU: sanitizers, probe, tests and benchmarks there
	@$(PY) -m benchmarks.gpu --check
	@ROUTING_EXT_CUDA=1 $(MAKE) --no-print-directory build
	$(PY) -m benchmarks.gpu

readme: build  ## writes the tables of README.md and docs/ from the results
	$(PY) -m benchmarks.make_readme

docs: build  ## the site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build --strict

wheel: build  ## an sdist and a wheel in dist/
	$(PY) -m build --no-isolation

clean:  ## removes what was compiled, not the environment
	rm -rf build dist site *.egg-info routing_ext/_C.*.so
