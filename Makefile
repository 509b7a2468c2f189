# vmhaul. `make demo` and `make test` need nothing but a Debian machine and root (or sudo).
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
KEEP ?=
SIZE ?= normal
FUZZ_SECONDS ?= 60
ROUNDS ?= 200
SEED ?=
FLEET ?=
# What a worker on Windows starts with; mypy follows the imports from there.
ON_WINDOWS := $(addprefix -m proxy_worker.,__main__ app enrol healthcheck mover_process)

.PHONY: help demo test lint fix unit deploy-test bench bench-fleet fuzz chaos compose-test clean setup-demo setup-test setup-bench lab

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup-demo:
	@tools/setup.sh demo

setup-test:
	@tools/setup.sh test

setup-bench:
	@tools/setup.sh bench

lab: setup-demo
	@lab/labvc/build.sh lab/build/labvc

demo: lab  ## set up, then back up and restore VMs of a simulated site (KEEP=1 leaves it running)
	@.venv/bin/vmhaul-lab demo --size $(SIZE) $(if $(KEEP),--keep)

test: setup-test lab lint  ## set up, then pass every test
	@tools/test.sh

lint: setup-test  ## style, types, import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --platform win32 --cache-dir .mypy_cache/win32 $(ON_WINDOWS) & windows=$$!; \
	  .venv/bin/mypy; code=$$?; wait $$windows && exit $$code
	.venv/bin/lint-imports

fix:  ## let ruff repair what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

unit: setup-test  ## the quick tests only
	$(PYTHON) -m pytest -q tests/unit tests/format tests/property

deploy-test: setup-test lab  ## a proxy's life on a container with systemd and SSH; needs root, says so when no engine can be started
	@$(PYTHON) -m tests.stages.deploy

bench: setup-bench lab  ## data mover beside its roofline and its peers; writes bench/results.json
	$(PYTHON) -m bench.bench_mover

bench-fleet: setup-test  ## a night of 10,000 VMs on 200 proxies, data movers played; FLEET='--vms 1000 ...' for another size
	$(PYTHON) -m bench.bench_fleet $(FLEET)

fuzz: setup-test  ## every parser for FUZZ_SECONDS (60) each, guided by what an input reaches
	$(PYTHON) -m tests.fuzz all $(FUZZ_SECONDS)

chaos: setup-test lab  ## ROUNDS (200) rounds of kills, cuts, freezes and false clocks during backups; SEED=n repeats
	$(PYTHON) -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

compose-test: setup-demo  ## docker-compose.yml with a Docker engine of its own: back up, restore, scale, kill (15 minutes)
	$(PYTHON) -m tests.stages.compose

clean:  ## remove what was made here (not the system packages)
	rm -rf .venv .demo lab/build build dist *.egg-info lab/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
