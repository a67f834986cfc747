# Two commands matter most: `make demo`, the main job on a sandbox without a GPU, and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv lab ready configure demo demo-check demo-clean lab-down test lint units sanity docs docs-site importer install-test \
  execution-environment release release-trial update-llama-cpp \
  package-test molecule molecule-more driver-dkms-test cuda-build-test exllamav2-build-test upgrade-test vllm-test bench \
  bench-planners bench-revalidation bench-live bench-site bench-tasks bench-downloads bench-watchdog bench-link watchdog-test gpu-test web-ui-test \
  first-evening-test build picture requirements clean

# Each scenario has a test host of its own; `make molecule SCENARIO=name` runs one.
MOLECULE_SCENARIOS := default nvidia_driver gpu_power preflight cuda_toolkit
# Scenarios that take longer: `make molecule-more`.
MOLECULE_MORE := models exllamav2 speculation experts lenders

export MIXED_GPU_CACHE ?= $(HOME)/.cache/homelab-mixed-gpu
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# The lab needs root for its namespaces; an ordinary container engine (LAB_ENGINE) does not.
AS_ROOT := $(if $(or $(LAB_ENGINE),$(filter 0,$(shell id -u))),,sudo -E env "PATH=$(PATH)" "HOME=$(HOME)")

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

venv:  ## install the pinned packages into .venv
	@requirements/venv.sh

demo-check:
	@$(if $(AS_ROOT),command -v sudo >/dev/null || { echo "demo: the lab needs root and sudo is not installed: run make demo as root" >&2; exit 1; };) \
	  $(AS_ROOT) tests/lab/demo.sh check >/dev/null

lab:
	@$(AS_ROOT) tests/lab/lab.sh up

ready:
	@$(if $(AS_ROOT),sudo -v &&) requirements/venv.sh python
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line venv lab

demo: demo-check ready  ## build, tune and serve a small model on a sandbox host with two unequal devices; no GPU needed
	@$(AS_ROOT) tests/lab/demo.sh

configure: venv  ## look at this machine, ask three questions and write its inventory; changes nothing else
	@ansible-playbook homelab.mixed_gpu.init

demo-clean:  ## remove the sandbox host, and the lab where that was its only host; caches stay
	@$(AS_ROOT) tests/lab/demo.sh clean

lab-down:  ## remove the lab and all its hosts; caches stay
	@$(AS_ROOT) tests/lab/lab.sh down

test: ready  ## everything CI runs, two steps at a time; the end lists what was skipped, and why
	@python tests/run_all.py molecule-default lint units first-evening-test \
	  $(patsubst %,molecule-%,$(filter-out default,$(MOLECULE_SCENARIOS))) package-test

lint: venv sanity docs  ## static checks: sanity, ruff, mypy, yamllint, ansible-lint and the project's own gates
	ruff check .
	cd .venv/collections && mypy --config-file ../../.mypy.ini -p ansible_collections.homelab.mixed_gpu.plugins
	yamllint -s .
	python tests/gates/argument_specs.py
	python tests/gates/rooms.py
	python tests/gates/rooms_picture.py
	python tests/gates/sizes.py
	python tests/gates/variable_kinds.py
	python tests/gates/task_names.py
	ansible-lint --offline

sanity: venv  ## ansible-test sanity on a copy of the working tree
	tests/gates/sanity.sh

docs: venv  ## check the documentation of plugins and roles, and the changelog fragments
	tests/gates/docs.sh

docs-site: venv  ## build/docs: the pages of docs/ and the reference of all plugins and roles, to browse; a minute
	tests/release/docs_site.sh

units: venv  ## unit tests
	python -m pytest tests/unit

importer: build  ## Galaxy's own importer on the built collection
	tests/gates/importer.sh

package-test: importer install-test execution-environment

install-test: build  ## install the built tarball and run its playbooks by name
	tests/gates/install.sh

execution-environment: build  ## what ansible-builder makes of the built collection; no container engine needed
	tests/release/execution_environment.sh

update-llama-cpp: venv  ## move the pin of llama.cpp, once it builds and passes; VERSION=0.3.40, or the newest; half an hour
	$(AS_ROOT) env PYTHONPATH=.venv/collections python tests/release/update_llama_cpp.py "$(VERSION)" "$(BUILD_NUMBER)"

release-trial: venv  ## a release in a copy: notes, tarball, Galaxy's importer; VERSION=1.0.0
	tests/release/trial.sh $(VERSION)

release: venv  ## version and release notes, here; docs/releasing.md has the steps around it; VERSION=1.0.0
	python tests/release/prepare.py $(VERSION)

molecule: $(addprefix molecule-,$(or $(SCENARIO),$(MOLECULE_SCENARIOS)))  ## the collection on real systemd hosts, without a GPU

molecule-more: $(addprefix molecule-,$(MOLECULE_MORE))  ## the scenarios models (a hub with faults), exllamav2, speculation, experts and lenders; forty minutes

molecule-%: venv
	$(AS_ROOT) tests/lab/molecule.sh $*

driver-dkms-test: venv  ## Debian's real driver packages through the role, DKMS build included; 10 to 20 minutes
	$(AS_ROOT) tests/lab/driver_dkms.sh

cuda-build-test: venv  ## llama.cpp's CUDA backend compiled with the CUDA wheels, without a GPU; up to an hour
	$(AS_ROOT) tests/lab/cuda_build.sh

web-ui-test: venv  ## llama.cpp's chat page made by the real npm, and a chat in a real Chromium; ten minutes
	$(AS_ROOT) tests/lab/web_ui.sh

first-evening-test: build  ## docs/first_evening.md on a fresh host, from pipx to an answered chat, with the built tarball; minutes
	$(AS_ROOT) tests/lab/first_evening.sh

watchdog-test: venv  ## each fault of a served model is noticed, and an hour of mixed load is none; 75 minutes
	$(AS_ROOT) tests/bench/watchdog_faults.sh

upgrade-test: venv  ## upgrades killed at each stage, new versions, the driver, a box with its lender; the longest suite
	$(AS_ROOT) tests/lab/molecule.sh upgrade
	$(AS_ROOT) tests/lab/molecule.sh upgrade_lenders

exllamav2-build-test: venv  ## PyTorch and ExLlama's extension with the CUDA wheels, and the real TabbyAPI, without a GPU; up to an hour
	$(AS_ROOT) tests/lab/exllama_build.sh

vllm-test: venv  ## commands for vLLM on Ray beside their own parsers and functions; fetches 416 MB of wheels
	MIXED_GPU_LARGE_WHEELS=1 python -m pytest -v tests/unit/plugins/module_utils/_split/test_vllm_wheel.py

bench: bench-planners bench-revalidation bench-downloads bench-tasks bench-live bench-watchdog bench-site  ## all benchmarks; each writes its section of docs/benchmarks.md

bench-planners: venv  ## regret and loads of the planners on recorded and simulated pairs; minutes, no root
	tests/bench/planners.sh

bench-revalidation: venv  ## verdicts of a revalidation on simulated series; two minutes, no root
	PYTHONPATH=.venv/collections python tests/bench/revalidation.py docs/benchmarks.md

bench-live: venv  ## the chosen split beside every split that fits, on the sandbox
	$(AS_ROOT) tests/bench/run.sh

bench-site: venv  ## a run of site.yml without changes, beside an earlier commit; two sandboxes
	$(AS_ROOT) tests/bench/site.sh

bench-tasks: venv  ## the cost of a task with a filter, beside an earlier commit; a minute, no root
	tests/bench/tasks.sh

bench-downloads: venv  ## a verified download beside hf download, get_url and curl; minutes, no root
	tests/bench/downloads.sh

bench-watchdog: venv  ## what the watchdog costs a decode, on the sandbox; minutes
	$(AS_ROOT) tests/bench/watchdog.sh

bench-link: venv  ## what a lender's network costs, predicted and measured; MIXED_GPU_LLAMA_BIN=FOLDER of llama.cpp's programs; 10 minutes
	$(AS_ROOT) tests/bench/link.sh

gpu-test: venv  ## the NVML probe and a CUDA build on a real NVIDIA card
	python -m pytest -v tests/gpu

build: venv  ## build/homelab-mixed_gpu-<version>.tar.gz
	@mkdir -p build && new=$$(mktemp -d build/new.XXXXXX) && \
	  ansible-galaxy collection build --output-path $$new && mv $$new/*.tar.gz build && rmdir $$new
	@ls -t build/homelab-mixed_gpu-*.tar.gz | tail -n +2 | xargs -r rm -f

picture: venv  ## draw docs/images/rooms.svg from the imports
	python tests/gates/rooms_picture.py --write

requirements:  ## pin again after editing a .in file (needs uv)
	for f in requirements/development requirements/benchmarks requirements/docs requirements/galaxy_importer \
	  requirements/execution_environment roles/host_python/files/requirements \
	  roles/revalidation_timer/files/requirements \
	  roles/exllamav2/files/requirements_v2 roles/exllamav2/files/requirements_v3; do \
	  uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --custom-compile-command "make requirements" $$f.in -o $$f.txt || exit 1; done

clean: demo-clean  ## remove the sandbox, .venv and build products; caches stay
	rm -rf .venv build reports .ansible .mypy_cache .ruff_cache
