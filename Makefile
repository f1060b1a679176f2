# Two commands need nothing but Python 3.11 or later:
#   make run     install, then index, evaluate, serve and search this Python's own documentation (ONCE=1 ends there)
#   make test    install what tests need as well, and run them
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PACKAGES := runtime retrieval moe evals serving

.PHONY: run test lint format clean

run: $(VENV)/.run
	$(BIN)/lexpert demo $(if $(ONCE),--once)

# A process for each core, and one thread of arithmetic in each: more would wait for each other. ARGS come last, so
# that "-n 0" among them runs everything in one process.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p %)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .lexpert

# Each is made anew when what it installs from has changed, and costs nothing otherwise.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lexpert needs Python 3.11 or later; name one with: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing lexpert into $(VENV) (a few minutes the first time) …"
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "installing what the tests need …"
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	@touch $@
