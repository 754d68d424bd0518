# make test | demo | lint | bench | bench-full | venv.  torch is the CPU build; `make TORCH_INDEX_URL=` takes PyPI's, which is CUDA on Linux.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
CONSTRAINTS ?= constraints-cpu.txt
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

BENCH_OUT ?= benchmark_work/results
BENCH_RUN = $(VENV_PYTHON) benchmarks/run.py --results $(BENCH_OUT)
BENCH_REPORT = $(VENV_PYTHON) benchmarks/report.py --results $(BENCH_OUT) --timed-results $(BENCH_OUT)
BENCH_DATA = $(if $(SETS),--sets "$(SETS)") $(if $(REAL_DATA),--real-data "$(REAL_DATA)")
SEEDS ?= 0 1 2
PEERS := lupin tridesclous2 spykingcircus2
DRIFT_PEERS := lupin_motion tridesclous2_motion

.PHONY: test demo lint bench bench-full venv clean

test: $(STAMP)
	$(VENV_PYTHON) -m pytest

demo: $(STAMP)
	$(VENV_PYTHON) -m spikeinterface_huidurep demo

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

# Three short cases, four sorters: under 25 minutes on 2 cores. The report is benchmark_report/report.html.
bench: $(STAMP)
	$(VENV_PYTHON) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[peers]"
	$(BENCH_RUN) --cases native_tetrode native_static --duration 60 --sorters huidurep $(PEERS) limit
	$(BENCH_RUN) --cases native_drift --duration 60 --sorters huidurep $(DRIFT_PEERS) spykingcircus2 limit
	$(BENCH_REPORT)

# Hours. SETS=FOLDER/seed{seed} names a folder for each seed with sets NAME/recording and NAME/sorting, which are run too;
# REAL_DATA=FOLDER the data of the hybrid cases.
bench-full: $(STAMP)
	$(VENV_PYTHON) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[benchmark]"
	$(BENCH_RUN) $(BENCH_DATA) --cases all --seeds $(SEEDS) --sorters huidurep huidurep_gmm $(PEERS) mountainsort5 limit
	$(BENCH_RUN) $(BENCH_DATA) --cases drifting --seeds $(SEEDS) --sorters $(DRIFT_PEERS) huidurep_no_motion
	$(BENCH_RUN) $(BENCH_DATA) --cases all --sorters simple huidurep_pca huidurep_no_temporal_whitening
	$(BENCH_RUN)/short --cases native_tetrode --duration 15 --sorters huidurep kilosort4 kilosort4_tetrode mountainsort5
	$(BENCH_REPORT)

venv: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS) $(wildcard startup/*)
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX_URL),$(VENV_PYTHON) -m pip install --quiet --no-deps --retries 1 --index-url $(TORCH_INDEX_URL) \
		--constraint $(CONSTRAINTS) torch || echo "no torch from $(TORCH_INDEX_URL): taking the default index's")
	$(VENV_PYTHON) -m pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
