# Every target prepares .venv by itself; the stamp makes the second run start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPING := build/typing/ralu_cache/adapters

.PHONY: demo test lint clean

demo: $(STAMP)
	$(BIN)/ralu-cache demo --out out/demo

# Two workers of one thread each: the models of the tests are too small for two threads to help.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP) $(TYPING)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# adapters/ is installed as ralu_cache.adapters; the link lets mypy see it under that name.
$(TYPING):
	mkdir -p $(dir $@)
	ln -sfn ../../../adapters $@
