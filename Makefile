# Every target sets up .venv by itself, on a machine with Python 3.10 to 3.14 and a C++ compiler.
#   make demo    compile real models with Inductor and with fuser, and compare
#   make test    run the tests (ARGS="-k softmax" narrows them)
#   make lint    ruff      make types   pyright      make format   ruff, rewriting
#   make bench   BENCH="attention compile"

PYTHON  ?=
WORKERS ?= 2
TIMEOUT ?= 300
ARGS    ?=
BENCH   ?= attention compile

VENV := .venv
PY   := $(VENV)/bin/python
PIP  := $(PY) -m pip --disable-pip-version-check install -qq --no-input
RUN  := $(VENV)/.run-stamp
DEV  := $(VENV)/.dev-stamp

# Models are built from their configurations: nothing is ever fetched from a hub.
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint format types bench setup clean

demo: $(RUN)
	$(PY) -m examples.demo $(ARGS)

# One thread and no compile pool a worker: two workers fill two cores. Compiled code is thrown away.
test: $(DEV)
	@cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
	TORCHINDUCTOR_CACHE_DIR=$$cache/inductor TRITON_CACHE_DIR=$$cache/triton \
	$(PY) -m pytest tests -n $(WORKERS) --timeout=$(TIMEOUT) $(ARGS)

lint: $(DEV)
	$(PY) -m ruff check
	$(PY) -m ruff format --check

format: $(DEV)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

types: $(DEV)
	$(PY) -m pyright --pythonpath $(PY)

bench: $(RUN)
	$(PY) -m benchmarks $(BENCH) $(ARGS)

setup: $(RUN) $(DEV)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/.made-stamp:
	@python="$(PYTHON)"; \
	for p in python3 python3.13 python3.12 python3.11 python3.14 python3.10 python; do \
	  [ -n "$$python" ] && break; \
	  "$$p" -c 'import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' \
	    2>/dev/null && python=$$p; \
	done; \
	[ -n "$$python" ] || { echo "No Python 3.10 to 3.14 with venv and ensurepip found: make PYTHON=..." >&2; exit 1; }; \
	echo "Setting up $(VENV) with $$python" && "$$python" -m venv $(VENV)
	@touch $@

# torch first and alone: another requirement that asks for it could bring a different build.
# timm without its requirements: torchvision has no build for every CPU build of torch.
$(RUN): $(VENV)/.made-stamp pyproject.toml constraints.txt
	$(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt setuptools
	$(PIP) -c constraints.txt --no-build-isolation --editable .
	$(PIP) -c constraints.txt transformers diffusers huggingface_hub safetensors pyyaml
	$(PIP) -c constraints.txt --no-deps timm
	@touch $@

$(DEV): $(RUN)
	$(PIP) -c constraints.txt --no-build-isolation --editable '.[test]'
	@touch $@
