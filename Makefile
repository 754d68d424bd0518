# make test | demo | lint | venv.  TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu takes torch's CPU build on Linux.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
CONSTRAINTS ?= constraints-cpu.txt
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: test demo lint venv clean

test: $(STAMP)
	$(VENV_PYTHON) -m pytest

demo: $(STAMP)
	$(VENV_PYTHON) -m spikeinterface_huidurep demo

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

venv: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS) $(wildcard startup/*)
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --quiet $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) \
		--constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
