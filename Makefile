# The commands for working on jobworker. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The Python that .venv is made from: `make setup PYTHON=python3.12`.
PYTHON ?= python3

# Every path is relative, so that a checkout whose path holds spaces works.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CERTS := certs/ca.crt
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# pip compiles the packages that it copies, but not this one, which is installed as editable: where
# PYTHONDONTWRITEBYTECODE is set, each program would compile it anew, 40 to 60 ms of every call.
COMPILE := $(BIN)/python -m compileall -q src

PROTO_PATH := jobworker/rpc/v1=proto/jobworker/v1
PROTO := jobworker/rpc/v1/jobworker.proto
GENERATED := jobworker_pb2.py jobworker_pb2.pyi jobworker_pb2_grpc.py jobworker_pb2_grpc.pyi
SCRIPTS := .ci/run demo/run demo/serve demo/clean-serve demo/common.bash guest/init guest/start

# Where `make serve` listens: `make serve LISTEN=localhost:0` takes a free port.
LISTEN ?= localhost:50051

# COVERAGE=1 measures the tests; REPORTS=DIR keeps a JUnit report of each tier there.
COVERAGE ?=
REPORTS ?=
PYTEST = $(BIN)/python $(if $(COVERAGE),-m coverage run) -m pytest -q \
	$(if $(REPORTS),--junit-xml=$(REPORTS)/$(1).xml) tests/$(1) $(ARGS)

# Tests start Python by the hundred: what is compiled once is kept, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

say = @printf '== %s\n'

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Setup ------------------------------------------------------------------------------------------

.PHONY: setup
setup: $(READY) ## Make .venv with everything pinned in constraints.txt

$(READY): pyproject.toml constraints.txt
	$(say) 'setting up $(VENV)'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'jobworker needs Python 3.11 or later; $(PYTHON) is' \
	        "$$($(PYTHON) -V 2>/dev/null || echo 'not there')." \
	        'Name another: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo 'cannot make $(VENV): $(PYTHON) has no venv module that works.' \
	        'On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@{ $(PIP) install --no-deps -r constraints.txt && \
	    $(PIP) install --no-deps --no-build-isolation -e . && \
	    { missing=$$($(BIN)/python -m pip check) || { echo "$$missing" >&2; false; }; }; } || { \
	    echo 'cannot fill $(VENV), see above. A package that is missing from constraints.txt' \
	        'comes with: make constraints' >&2; exit 1; }
	@$(COMPILE)
	@touch $@

.PHONY: constraints
constraints: ## Refresh constraints.txt: the newest releases that pyproject.toml allows
	$(say) 'resolving afresh; run the tests before you commit the result'
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	pip() { "$$fresh/bin/python" -m pip -qq --disable-pip-version-check "$$@"; }; \
	pip install hatchling editables; \
	pip install --no-build-isolation -e '.[dev]'; \
	{ sed -n '/^#/p' constraints.txt; \
	    pip freeze --all --exclude pip --exclude-editable; } > "$$fresh/constraints.txt"; \
	cp "$$fresh/constraints.txt" constraints.txt
	@git --no-pager diff --stat constraints.txt || true

# Seeing it work ---------------------------------------------------------------------------------

# What needs root says so before anything is made.
check_host = @program=$@; . demo/common.bash; check_host

.PHONY: demo
demo: ## Show the main features with a server of its own, which is removed at the end
	$(check_host)
	@$(MAKE) --silent certs
	@demo/run

.PHONY: serve
serve: ## Run a server in the foreground, with its directories in .serve/
	$(check_host)
	@$(MAKE) --silent certs
	@LISTEN='$(LISTEN)' demo/serve

.PHONY: clean-serve
clean-serve: ## End the jobs of `make serve`, and remove .serve/
	@demo/clean-serve

.PHONY: certs
certs: $(CERTS) ## Make a development CA and certificates in certs/, unless they are there

$(CERTS): | $(READY)
	$(say) 'making certificates'
	@$(BIN)/jobworker certs init certs

# Tests ------------------------------------------------------------------------------------------

.PHONY: test
test: $(READY) ## Run all tests: the unit, e2e and guest tiers (needs root and cgroup v2)
	@$(MAKE) test-unit
	@$(MAKE) test-e2e
ifneq ($(SKIP_GUEST),1)
	@$(MAKE) guest-test
else
	@echo '== guest tests: SKIPPED, because SKIP_GUEST=1 is set. Nothing shows that limits hold' >&2
endif

.PHONY: test-unit
test-unit: $(READY) ## Run the tests that need neither root nor kernel features
	$(say) 'unit tests'
	@$(call PYTEST,unit) || { echo 'unit tests failed. One of them again: make test-unit' \
	    "ARGS='-k NAME'" >&2; exit 1; }

.PHONY: test-e2e
test-e2e: $(READY) ## Run the real programs against this machine's kernel (root, cgroup v2)
	$(say) 'end-to-end tests'
	@$(call PYTEST,e2e) || { echo 'end-to-end tests failed. One of them again: make test-e2e' \
	    "ARGS='-k NAME'" >&2; exit 1; }

# The tests run in the guest, whose own output directory comes back as $(GUEST_REPORTS). pytest sees no conftest.py of
# other tiers there, nor hypothesis: both are slow to load.
GUEST_OUTPUT := /run/guest/output
GUEST_REPORTS = $(or $(REPORTS),reports)
GUEST_PYTEST = $(BIN)/python \
	$(if $(COVERAGE),-m coverage run --data-file=$(GUEST_OUTPUT)/.coverage) \
	-m pytest -q --confcutdir=tests/guest -p no:hypothesispytest \
	--junit-xml=$(GUEST_OUTPUT)/guest.xml tests/guest $(ARGS)

.PHONY: guest-test
guest-test: $(READY) ## Prove the limits on a kernel with every controller, in a virtual machine
ifndef ARGS
	$(say) 'the guest seen from the host'
	@$(call PYTEST,harness) || { echo 'the guest does not work as it should' >&2; exit 1; }
endif
	$(say) 'guest tests'
	@$(BIN)/python -m guest run --output $(GUEST_REPORTS) -- $(GUEST_PYTEST) || { \
	    echo 'guest tests failed. One of them again: make guest-test' \
	    "ARGS='-k NAME'" >&2; exit 1; }

.PHONY: guest-mutants
guest-mutants: $(READY) ## Prove that the guest tests can fail: without each limit's write in turn
	$(say) 'guest tests with a server that does not write one limit'
	@$(BIN)/python -m guest run --output $(GUEST_REPORTS) --time-limit 1800 -- \
	    $(BIN)/python -m tests.guest.mutants $(ARGS) || { \
	    echo 'a limit could be left out, and no test would fail. One of them again:' \
	    'make guest-mutants ARGS=memory_max' >&2; exit 1; }

.PHONY: guest
guest: $(READY) ## Open a shell in that virtual machine, on the files of this one
	@$(BIN)/python -m guest shell

.PHONY: coverage
coverage: $(READY) ## Run all tests measured, and print what they do not reach
	@$(BIN)/python -m coverage erase
	@status=0; $(MAKE) test COVERAGE=1 || status=$$?; \
	echo '== coverage (the shim runs in isolated mode, so only its unit tests are measured)'; \
	$(BIN)/python -m coverage combine -q . $(if $(wildcard $(GUEST_REPORTS)),$(GUEST_REPORTS)) \
	    || status=$$?; \
	$(BIN)/python -m coverage report || status=$$?; \
	exit "$$status"

.PHONY: bench
bench: ## Measure, each figure against a bare one in the same run (needs root)
	$(check_host)
	@$(MAKE) --silent setup
	@$(BIN)/python -m bench $(ARGS)

.PHONY: soak
soak: ## Start, follow and stop jobs at random while server and shim are killed (needs root)
	$(check_host)
	@$(MAKE) --silent setup
	@$(BIN)/python -m bench.soak $(ARGS)

# Source code ------------------------------------------------------------------------------------

.PHONY: lint
lint: $(READY) ## Check style, types, the direction of imports and the shell scripts
	$(say) 'ruff'
	@$(BIN)/ruff check -q . && $(BIN)/ruff format -q --check . || { \
	    echo 'ruff: `make format` repairs what can be repaired' >&2; exit 1; }
	$(say) 'mypy'
	@$(BIN)/mypy --no-error-summary
	$(say) 'imports'
	@$(BIN)/lint-imports --no-cache > $(VENV)/imports.log 2>&1 || { \
	    cat $(VENV)/imports.log; \
	    echo 'imports: the directions are in ARCHITECTURE.md, "Where things are"' >&2; exit 1; }
	$(say) 'shell scripts'
	@$(BIN)/shellcheck -x $(SCRIPTS)

.PHONY: format
format: $(READY) ## Format the code and repair what the linter can
	@$(BIN)/ruff check -q --fix-only .
	@$(BIN)/ruff format .

.PHONY: proto
proto: $(READY) ## Generate src/jobworker/rpc/v1 from proto/
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I$(PROTO_PATH) \
	    --python_out=src --grpc_python_out=src --mypy_out=quiet:src --mypy_grpc_out=quiet:src \
	    $(PROTO)

.PHONY: check-proto
check-proto: $(READY) ## Check that the generated code is what proto/ says
	$(say) 'generated code'
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	PATH="$$PWD/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I$(PROTO_PATH) \
	    --python_out="$$fresh" --grpc_python_out="$$fresh" \
	    --mypy_out=quiet:"$$fresh" --mypy_grpc_out=quiet:"$$fresh" $(PROTO); \
	for file in $(GENERATED); do \
	    diff -u "src/jobworker/rpc/v1/$$file" "$$fresh/jobworker/rpc/v1/$$file" || { \
	        echo 'the generated code is out of date: make proto, and commit' >&2; exit 1; }; \
	done

.PHONY: clean
clean: ## Remove .venv, caches and reports; keeps certs/, and .serve/ (make clean-serve)
	@rm -rf $(VENV) dist reports htmlcov .coverage .coverage.* .pytest_cache .mypy_cache \
	    .ruff_cache .import_linter_cache .hypothesis
	@find src tests bench guest -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
