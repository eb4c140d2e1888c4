# Momentum DeltaNet. `make help` lists what can be made; README.md says where to start.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# CUDA=on builds the GPU backend (nvcc from PyPI); auto: on where a GPU is found.
CUDA  ?= auto
BUILD ?= build
JOBS  ?= $(shell nproc)

ifeq ($(CUDA),auto)
  CUDA_ON := $(shell nvidia-smi -L >/dev/null 2>&1 && echo ON || echo OFF)
else
  CUDA_ON := $(if $(filter on ON 1,$(CUDA)),ON,OFF)
endif

.PHONY: help setup build demo test lint format bench fuzz sanitize clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what is missing (Debian packages, a local Python environment)
	@tools/setup.sh $(CUDA_ON)

build: setup ## compile build/mdn, the operators and the tests
	@tools/build.sh $(BUILD) $(CUDA_ON) $(JOBS)

demo: setup ## train a small MDN on Shakespeare on the CPU and let it write (about 13 minutes the first time)
	@tools/demo.sh $(BUILD) $(CUDA_ON) $(JOBS)

test: build ## run every test (the GPU's are skipped without one)
	@tools/test.sh $(BUILD)

lint: setup ## check formatting and run the static checks
	@tools/lint.sh

format: setup ## reformat the C++ and CUDA sources in place
	@git ls-files -z -- '*.cpp' '*.h' '*.cu' '*.cuh' | xargs -0 clang-format -i

bench: build ## time the operators on this machine; writes bench/results/
	@tools/bench.sh $(BUILD)

fuzz: setup ## run each fuzz target for SECONDS_EACH CPU seconds (default 60)
	@tools/fuzz.sh $(or $(SECONDS_EACH),60)

sanitize: setup ## the whole C++ suite under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/sanitize.sh $(JOBS)

clean: ## remove the build folders (the Python environment stays)
	rm -rf build build-*
