# Every target makes .venv when it is missing and installs into it when the requirements have changed.
# Another interpreter: make demo PYTHON=python3.13 (it is used when .venv is made; remove .venv to change it).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# constraints.txt holds the versions that were tested; without it, pip may take a much larger build of torch.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
METADATA := settings.ini setup.py pyproject.toml constraints.txt
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lab docs bench prepare pictures lock base base-texts

help:
	@echo "make demo     fine-tune a small model on this machine: no account or GPU, no network beyond the installation"
	@echo "make test     execute every notebook and run the tests"
	@echo "make lab      open the notebooks in JupyterLab"
	@echo "make docs     build the docs site into _docs (with Quarto; without it, a plain preview)"
	@echo "make bench    measure clm_nb and its peers side by side into benchmarks/KIND/RESULTS.md (SCALE=2: more; ONLY=generation: one group)"
	@echo "make prepare  after editing notebooks: export the modules, clean the notebooks, write README.md"
	@echo "make pictures take the pictures of the pages anew, in headless Chromium (NAMES='report explorer': these)"
	@echo "make base     make the shipped base model again, into clm_nb/base (about an hour)"
	@echo "make base-texts  make again what it reads, tools/base/texts.parquet, from the releases of five projects"
	@echo "make lock     write constraints.txt from the newest versions that settings.ini allows"
	@echo "Each makes $(VENV) when it is missing, with PYTHON=$(PYTHON)."

demo: $(VENV)/runtime.stamp
	@echo "== demo: the whole path, from the standard library's own documentation to generated text"
	@$(BIN)/clm_nb demo

test: $(VENV)/dev.stamp
	@echo "== test 1/3: modules, notebooks and README.md are up to date with each other"
	@$(BIN)/python -m pytest -q tests/test_uptodate.py
	@echo "== test 2/3: every notebook, top to bottom"
	@OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2 --do-print --timing
	@echo "== test 3/3: what crosses stages or processes"
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --ignore tests/test_uptodate.py tests

lab: $(VENV)/dev.stamp
	@echo "== lab: JupyterLab on nbs/ (stop it with Ctrl-C)"
	@$(BIN)/jupyter lab nbs/index.ipynb

docs: $(VENV)/dev.stamp
	@echo "== docs: the site, into _docs/"
	@$(BIN)/python tools/docs.py site

bench: $(VENV)/bench.stamp
	@echo "== bench: ours and the peers in turns, 10 to 15 minutes on two cores (SCALE= multiplies, ONLY= picks groups)"
	@$(BIN)/python benchmarks/run.py --scale '$(or $(SCALE),1)' --only '$(ONLY)'

prepare: $(VENV)/dev.stamp
	@echo "== prepare: Colab links, exported modules, cleaned notebooks, README.md, llms.txt"
	@$(BIN)/python tools/docs.py colab
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python tools/docs.py readme
	@$(BIN)/python tools/docs.py llms
	@$(BIN)/python tools/house.py

pictures: $(VENV)/dev.stamp
	@echo "== pictures: into nbs/images/, a few minutes"
	@$(BIN)/python tools/pictures.py $(NAMES)

base: $(VENV)/dev.stamp
	@echo "== base: the base model, from tools/base/texts.parquet into clm_nb/base"
	@$(BIN)/python tools/base/model.py

base-texts: $(VENV)/dev.stamp
	@echo "== base-texts: from the releases into tools/base/texts.parquet, a few minutes"
	@$(BIN)/python tools/base/texts.py

lock:
	@echo "== lock: installing '.[dev,app,bench]' into a new environment and writing constraints.txt"
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,app,bench]'
	@{ grep '^#' constraints.txt; $(VENV)-lock/bin/python -m pip freeze --all --exclude clm_nb --exclude pip \
	   | grep '==' | sed 's/+[a-z0-9.]*$$//'; } > $(VENV)-lock/constraints.txt
	@mv $(VENV)-lock/constraints.txt constraints.txt && rm -rf $(VENV)-lock

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "clm_nb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Set PYTHON="; exit 1; }
	@echo "== $(VENV): a new environment with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/runtime.stamp: $(METADATA) | $(BIN)/python
	@echo "== $(VENV): installing clm_nb and what running it needs (a few minutes the first time)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/dev.stamp: $(METADATA) | $(BIN)/python
	@echo "== $(VENV): installing clm_nb and what developing it needs (a few minutes the first time)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/runtime.stamp $@

$(VENV)/bench.stamp: $(METADATA) | $(BIN)/python
	@echo "== $(VENV): installing clm_nb and the peers it is measured against (a few minutes the first time)"
	@$(INSTALL) --editable '.[bench]'
	@touch $(VENV)/runtime.stamp $@
