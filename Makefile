# `make smoke` and `make test` set everything up on a fresh clone. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup smoke test long faults lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

smoke: $(STAMP)
	$(BIN)/sam3dist smoke

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Fast tests first, so that a simple mistake shows within the first minutes, and in two processes with a thread each. The
# slow ones, one after the other, start processes enough by themselves.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not long and not faults'
	$(BIN)/python -m pytest -q --durations=12 -m 'slow and not long and not faults'

# What would make `make test` too long to wait for: half an hour.
long: $(STAMP)
	$(BIN)/python -m pytest -q -m long

# Breaks a cluster of several nodes in every way it knows; about half an hour. As root, nodes have networks of their own.
faults: $(STAMP)
	$(BIN)/python -m pytest -q -m faults tests/faults

bench: $(STAMP)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache
