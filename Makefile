# Two commands: `make serve` runs the main job, `make test` checks everything. Both set up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(addprefix plugins/streamkd-,baselines crossmodal mlflow text vision)
READY := $(VENV)/.ready
# rooms whose tests compute and neither serve nor start anybody
UNIT := analytic incremental gates losses students replay teachers tasks learning streams state evaluate
FAST := $(wildcard $(addprefix tests/,$(UNIT))) $(wildcard $(patsubst %,tests/test_%.py,config plugins api extras package)) plugins/streamkd-baselines/tests

.PHONY: help setup serve test test-fast check anatomy bench soak soak-kafka clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv with everything pinned

$(READY): requirements.txt requirements-dev.txt constraints.txt pyproject.toml $(PLUGINS:=/pyproject.toml)
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "needs $(PYTHON); name another with: make PYTHON=python3 setup"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "needs Python 3.11, got $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements.txt -r requirements-dev.txt -c constraints.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . $(addprefix -e ,$(PLUGINS))
	@touch $(READY)

serve: setup ## learn from the embedded stream and answer on http://127.0.0.1:8470
	$(BIN)/streamkd serve

test: setup check ## check, then the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-fast: setup ## the tests of the rooms that only compute, within 90 s on two cores
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not soak" $(FAST)

check: setup ## format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

anatomy: setup ## modules, lengths, circles and types beside pluggy, httpx, river and Avalanche
	$(BIN)/python tests/anatomy.py streamkd:tests pluggy httpx river avalanche

bench: setup ## speed beside a bare PyTorch loop and Avalanche's replay
	$(BIN)/streamkd bench speed --json out/speed.json

soak: setup ## the long tests (tests/chaos and others), also under the kernels of other processors
	$(BIN)/python -m pytest -q -m soak --timeout 3600

soak-kafka: setup ## the tests of Kafka against the brokers of KAFKA_BOOTSTRAP, with topics of their own
	@test -n "$(KAFKA_BOOTSTRAP)" || { echo "skipped: set KAFKA_BOOTSTRAP=host:port to run the tests of Kafka against real brokers"; exit 0; }; \
	STREAMKD_TEST_KAFKA="$(KAFKA_BOOTSTRAP)" $(BIN)/python -m pytest -q -m kafka --timeout 3600 tests/streams/brokers tests/endtoend/test_kafka.py

clean: ## remove what setup and the tools made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
