# Everything runs in .venv, which is made on first use; nothing else is installed on the machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Most tests wait for processes and hosts more than they compute.
WORKERS ?= $(shell echo $$((2 * $$(nproc || echo 2))))

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench containers check format lock docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml requirements.lock tools/setup.sh
	@PYTHON="$(PYTHON)" bash tools/setup.sh $(VENV)
	@touch $@

demo: $(READY) ## Run the main job: every .py file of Python's own library through gzip, on all cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

test: $(READY) ## Run all tests (the slow chaos tests apart)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not chaos" $(ARGS)

chaos: $(READY) ## Kill workers for a minute and count what is left
	$(BIN)/python -m pytest -m chaos $(ARGS)

bench: $(READY) ## Compare with xargs, GNU parallel, rq ...: all, or ROW="1 4-6 nodes"; BASE=revision, ROUNDS=n, SMOKE=1
	@ROW="$(ROW)" BASE="$(BASE)" ROUNDS="$(ROUNDS)" SMOKE="$(SMOKE)" $(BIN)/python -m tools.bench

containers: $(READY) ## Build the images and try docker-compose.yml on 100 files; needs docker, or root
	@bash tools/containers.sh

check: $(READY) ## Lint, format, types: what CI runs besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/cli_reference.py --check

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## Write docs/cli.md from the code
	$(BIN)/python tools/cli_reference.py

lock: $(READY) ## Write requirements.lock anew from what pyproject.toml allows
	$(BIN)/python tools/lock.py

clean: ## Remove the virtual environment and all that was built
	rm -rf $(VENV) .cache/bench dist build demo-output .mypy_cache .pytest_cache .ruff_cache .hypothesis
