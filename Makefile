# Every target prepares .venv by itself; the stamp makes the second run start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPING := build/typing/ralu_cache/adapters
# Two workers of one thread each: the models of the tests are too small for two threads to help. Bytecode is written even
# where the environment says otherwise: rewriting the tests' assertions anew costs each worker seconds.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test quick coverage mutation evidence lint docs package hooks clean

demo: $(STAMP)
	$(BIN)/ralu-cache demo --out out/demo

test: lint
	$(PYTEST)

# Without the tests that are marked as slow: for a person who is thinking.
quick: lint
	$(PYTEST) -m "not slow"

# Branches of the rooms where decisions are taken, by the tests of tests/covering.py alone; fails below 95 %.
coverage: $(STAMP)
	$(PYTEST) -m covering --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

# Which changes of the pure rooms no test notices; goes on where it was stopped.
mutation: $(STAMP)
	$(BIN)/python -m benchmarks.mutation

# Ours against the best of the others at equal cost: memory, pictures, videos; goes on where it was stopped, each part
# an hour at most.
evidence: export OMP_NUM_THREADS := 1
evidence: $(STAMP)
	$(BIN)/python -m benchmarks.regime.costs
	$(BIN)/python -m benchmarks.evidence
	$(BIN)/python -m benchmarks.tiny_wan.study

lint: $(STAMP) $(TYPING)
	$(BIN)/ruff check .
	$(BIN)/vulture
	$(BIN)/mypy

# The site in build/site/; a warning is an error.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

package: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build

hooks: $(STAMP)
	$(BIN)/pre-commit install

clean:
	rm -rf $(VENV) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# adapters/ is installed as ralu_cache.adapters; the link lets mypy see it under that name.
$(TYPING):
	mkdir -p $(dir $@)
	ln -sfn ../../../adapters $@
