# make setup   the virtual environment, with the program as .venv/bin/bivisor
# make demo    setup, then Linux: a shell on a terminal, one command elsewhere
# make docs    the site of the documentation in dist/site
# make fuzz    break the device models, for MINUTES=10
# make test    setup, lint, and the tests (those of the reference machine are for .ci/run)

BIN := .venv/bin
SOURCES := src tests fuzz examples $(wildcard bench)
MINUTES := 10

.PHONY: setup demo test lint format docs bench fuzz clean

setup: .venv/ready ; @:

.venv/ready: pyproject.toml tools/setup
	@tools/setup .venv
	@touch $@

demo: setup
	@if [ -t 0 ] && [ -t 1 ]; then $(BIN)/bivisor run; else $(BIN)/bivisor run --exec 'uname -a'; fi

# The guest kernel is fetched first: tests that run side by side would each fetch it.
test: lint
	-@$(BIN)/bivisor image get --quiet
	$(BIN)/python -m pytest -m 'not rig' -n auto --maxprocesses 4 --dist worksteal

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The site of the documentation, in dist/site. A dead link fails it.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: setup
	$(BIN)/python bench/boot.py
	$(BIN)/python bench/exits.py

fuzz: setup
	$(BIN)/python -m pip install --quiet 'atheris>=2.3'
	$(BIN)/python -m fuzz --minutes $(MINUTES)

clean:
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
