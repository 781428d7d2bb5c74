# Every target but help, clean and distclean makes its environment first. `make help` lists them.

PROFILE ?= offline
JOBS    ?=
PYTHON  ?= python3.11

# Where conda or mamba is there, they make the environment, since they also bring Quarto; CONDA= forces a venv.
CONDA ?= $(shell command -v mamba 2>/dev/null || command -v conda 2>/dev/null)
ENV    := .venv
STAMP  := $(ENV)/.made
BIN    := $(ENV)/bin

# Recipes read these from the environment, so that no name of a folder or profile is taken apart by the shell. Commands
# are called through Python, since the first line of a script cannot name every folder.
export PROFILE PYTHON CONDA
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
POLYDETOX := $(BIN)/python -m polydetox

.PHONY: help env requirements paper test test-rehearsal test-cluster rehearsal preview snapshots picture quarto pdf rulegraph lint clean distclean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PROFILE=offline (default), offline-full, offline-control, offline-rtplx, offline-second, world, paper, paper-control: a file of params/profiles/"

env: $(STAMP) ## make the environment in .venv

$(STAMP): requirements.txt environment.yml pyproject.toml
# Nothing but what requirements.txt pins: lm-eval asks for packages of tasks that are not used here, and the Slurm plugin
# for another numpy (pyproject.toml, [tool.uv]).
ifneq ($(CONDA),)
	PIP_NO_DEPS=1 "$$CONDA" env create --yes --quiet --prefix $(ENV) --file environment.yml \
	  || PIP_NO_DEPS=1 "$$CONDA" env update --quiet --prefix $(ENV) --file environment.yml --prune
else
	@command -v "$$PYTHON" >/dev/null || { echo "polydetox needs Python 3.11: install it, or say make PYTHON=<its path>"; exit 1; }
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$PYTHON is older than Python 3.11"; exit 1; }
	@echo "Making the environment in $(ENV) (about two minutes)"
	@"$$PYTHON" -m venv --clear $(ENV)
	@$(PIP) install --no-deps --requirement requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
endif
# torch has its own requirements added: none where it is a CPU build, CUDA where it is pip's own build for Linux.
	@$(PIP) install $$(grep '^torch==' requirements.txt)
	@$(BIN)/python -c 'import torch' || { echo "torch does not load; see above"; exit 1; }
	@touch $(STAMP)

# The GPU's set is resolved first and holds the other one, so that both have the same versions. What is pinned stays as
# long as pyproject.toml allows it; UPGRADE=1 takes the newest. CUDA is what torch asks for in its build for Linux.
RESOLVE := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --fork-strategy fewest \
  --extra offline --extra slurm --extra dev --no-annotate --custom-compile-command "make requirements"
CUDA    := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton

requirements: $(STAMP) ## pin what pyproject.toml asks for; UPGRADE=1: the newest
	$(RESOLVE) $(if $(UPGRADE),--upgrade) --extra gpu --output-file requirements-gpu.txt
	printf '%s\n' $(CUDA) | $(RESOLVE) $(if $(UPGRADE),--upgrade) --constraints requirements-gpu.txt --excludes - \
	  --output-file requirements.txt

paper: $(STAMP) ## run PROFILE to the rendered report, and say where it is
	@$(BIN)/python -m polydetox.quarto
	@$(POLYDETOX) run --profile="$$PROFILE" $(if $(JOBS),--jobs $(JOBS))

preview: $(STAMP) ## render what has been run so far, with the preview renderer
	@$(POLYDETOX) render --profile="$$PROFILE" --preview

pdf: $(STAMP) ## render what has been run so far, and a PDF of its chapters; needs Quarto
	@$(POLYDETOX) render --profile="$$PROFILE" --pdf

snapshots: $(STAMP) ## keep the figures of a finished run of PROFILE for the page Extensions
	@$(POLYDETOX) snapshot --profile="$$PROFILE"

picture: $(STAMP) ## take README's picture and numbers from a finished run of PROFILE; needs Chromium
	@$(BIN)/python tests/site/picture.py

quarto: $(STAMP) ## get Quarto into .venv; `make paper` tries it once by itself
	@$(BIN)/python -m polydetox.quarto --again

PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

test: $(STAMP) ## the tests: mathematics, notebooks, rendered site
# The tests of one file share their fixtures in one process; files start in the order of tests/conftest.py.
	@$(PYTEST) --dist=loadfile --no-loadscope-reorder -m "not rehearsal"

test-rehearsal: $(STAMP) ## the papers' profiles, with a few of their models and languages, from data to site
	@$(PYTEST) -m rehearsal tests/notebooks

test-cluster: $(STAMP) ## a small profile on a Slurm of two nodes on this host (root, Debian's packages)
	@$(BIN)/python -m pytest tests/cluster

rehearsal: $(STAMP) ## the papers' profiles with random models and little data, before they cost GPU hours
	@$(BIN)/python -m tests.rehearsal $(if $(JOBS),--jobs $(JOBS))

# Snakemake's own picture of the stages of these profiles side by side, without the report, which reads them all.
DRAWN := paper paper-control world

rulegraph: $(STAMP) ## draw the stages into book/rulegraph.svg; needs graphviz
	@command -v dot >/dev/null || { echo "make rulegraph needs graphviz (apt-get install graphviz)"; exit 1; }
	@set -e; for profile in $(DRAWN); do \
	  $(BIN)/python -m snakemake --quiet all --config profile=$$profile --rulegraph --omit-from record; \
	done > book/rulegraph.dot
	@dot book/rulegraph.dot | gvpack -array_ut3 2>/dev/null | neato -n2 -Gbgcolor=transparent -Tsvg -o book/rulegraph.svg
	@rm book/rulegraph.dot

lint: $(STAMP) ## style of the library, the tests and the workflow, and the library's types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check lib tests bench
	@$(BIN)/python -m mypy

clean: ## remove every artefact (runs/), keep the environment
	rm -rf runs .snakemake

distclean: clean ## remove the environment as well
	rm -rf $(ENV)
