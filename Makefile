# `make` alone lists the targets. Everything runs in $(VENV), which is made when it is missing and brought up to date
# when pyproject.toml has changed. Needs Python 3.11 or newer and nothing else: make PYTHON=python3.12 picks another one.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# notebooks/conftest.py says which notebooks are left to the reader's own card (90_*, *_gpu).
NOTEBOOKS := $(wildcard notebooks/[0-8]*.ipynb)
# One thread a process: on a few shared cores OpenMP threads mostly wait for each other. No hub: tests are offline.
CALM := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help demo test pytest rehearsal slow notebooks browser gpu lint format lab venv clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: $(READY)  ## the embedded model, offloaded, in a minute on any machine
	@$(PY) -m mobile_nb demo

test: lint pytest rehearsal notebooks  ## lint, tests, then every notebook run again and compared

pytest: $(READY)  ## the tests alone, on every core
	@$(CALM) $(PY) -m pytest -p no:nbval --numprocesses auto --maxprocesses 8

rehearsal: $(READY)  ## the tests for a CUDA card, on one that is not there: tensors that say they lie on it
	@$(CALM) $(PY) -m pytest -p no:nbval --pretend-card --numprocesses auto --maxprocesses 8 tests/*gpu.py

slow: $(READY)  ## what make test leaves out: rarer families of transformers, and times measured on a quiet machine
	@$(CALM) $(PY) -m pytest -p no:nbval -m slow

notebooks: $(READY)  ## the notebooks alone
ifeq ($(NOTEBOOKS),)
	@echo "notebooks: there are none yet, so nothing was run."
else
	@$(CALM) PLOTLY_RENDERER=plotly_mimetype $(PY) -m pytest --nbval --nbval-current-env --nbval-cell-timeout 600 \
		--nbval-sanitize-with notebooks/sanitize.cfg --numprocesses auto --maxprocesses 4 --dist loadfile notebooks
endif

browser: $(READY)  ## notebook 06 in JupyterLab in a headless Chromium; screenshots in artifacts/browser
	@$(CALM) $(PY) -m pytest -m browser tests/browser

gpu: $(READY)  ## on a machine with a CUDA card: its tests, then the benchmark, as JSON in artifacts/
	@$(PY) -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu needs a CUDA card.")'
	@mkdir -p artifacts
	@$(CALM) $(PY) -m pytest -p no:nbval -m gpu tests/*gpu.py
	@$(PY) -m mobile_nb bench --json artifacts/bench.json
	@$(PY) -m mobile_nb bench --static --json artifacts/bench-static.json

lint: $(READY)  ## ruff: rules and format
	@$(PY) -m ruff check --quiet
	@$(PY) -m ruff format --check --quiet || { echo "ruff would format the files above: run 'make format'."; exit 1; }

format: $(READY)  ## let ruff fix and format everything
	@$(PY) -m ruff check --fix --quiet
	@$(PY) -m ruff format --quiet

lab: $(READY)  ## JupyterLab in notebooks/
	@$(PY) -m jupyterlab notebooks

venv: $(READY)  ## the environment alone

# A plain install of torch brings a CUDA build of several GB on Linux. Whoever has no card can put a CPU build into
# $(VENV) first (CONTRIBUTING.md says how); pip then leaves it alone. pyproject.toml admits torch 2.14 too; here it is the
# release before, with which the committed notebooks were run.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"mobile_nb needs Python 3.11 or newer, and $(PYTHON) is %d.%d: try make PYTHON=python3.12." % sys.version_info[:2])'
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV) with $$($(PYTHON) --version) ..."; $(PYTHON) -m venv --clear $(VENV); fi
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(PY) -c 'import torch' 2>/dev/null; then \
		echo "no NVIDIA driver here: if pip starts fetching CUDA packages, see 'No GPU' in CONTRIBUTING.md."; fi
	@echo "installing mobile_nb and what it needs into $(VENV) (a few minutes the first time) ..."
	@$(PY) -m pip install -qq --disable-pip-version-check -e '.[dev]' 'torch<2.14'
	@touch $@

clean:  ## remove builds and caches; the environment stays (rm -r .venv removes it)
	@rm -rf build dist artifacts .pytest_cache .ruff_cache .hypothesis
	@find mobile_nb tests notebooks data -name __pycache__ -type d -prune -exec rm -rf {} +
	@find notebooks -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +
