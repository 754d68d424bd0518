# make test | demo | lint | venv.  torch is the CPU build; `make TORCH_INDEX_URL=` takes PyPI's, which is CUDA on Linux.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
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
	$(if $(TORCH_INDEX_URL),$(VENV_PYTHON) -m pip install --quiet --no-deps --retries 1 --index-url $(TORCH_INDEX_URL) \
		--constraint $(CONSTRAINTS) torch || echo "no torch from $(TORCH_INDEX_URL): taking the default index's")
	$(VENV_PYTHON) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
