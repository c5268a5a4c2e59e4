# Two commands are all a newcomer needs: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow test-gpu criteria zoo against-torch-pruning bench-attributions check install install-launchers

install: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@echo "Installing the locked dependencies into .venv; this takes some minutes ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

install-launchers: install  # Ray, PostgreSQL's driver, Optuna; docs/sweeps.md
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-launchers.lock

run: install
	$(BIN)/python -m pruning_lab metric=shapley model=vgg16

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-gpu: install
	$(BIN)/python -m pytest -m gpu

zoo: install
	$(BIN)/python -m benchmarks.zoo --jobs 2 --output docs/zoo.md

against-torch-pruning: install
	$(BIN)/python -m benchmarks.against_torch_pruning --output docs/against_torch_pruning.md

bench-attributions: install
	$(BIN)/python -m benchmarks.attributions --output docs/attributions.md

criteria: install
	$(BIN)/python -m pruning_lab.criteria > docs/criteria.md

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
