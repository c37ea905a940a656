# make demo   set up .venv and run the whole job on a real model
# make test   set up .venv and pass the tests;  make test-fast leaves out real models
# Both go on where they stopped.

PYTHON ?= python3
BIN := .venv/bin
LLAMA_CPP_PYTHON := 0.3.36
# The tests of a file share what it makes, so a file stays in one process.
SHARED := -n auto --maxprocesses 4 --dist loadfile
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-fast lint setup clean

demo: setup
	$(BIN)/edgeprune run --device host --max-file 85MB --max-mem 200MB --context 512 --kv-type f16 --windows 4 --max-steps 4 --effort 0 \
		--heal refit --export gguf:Q8_0 --export onnx:int8 --export onnx:int4-mixed -o demo

test: setup .venv/extras .venv/llama.cpp
	$(BIN)/ruff check
	$(BIN)/python -m pytest $(SHARED)

test-fast: setup .venv/llama.cpp
	$(BIN)/python -m pytest $(SHARED) -m "not slow"

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing; llama-cpp-python is compiled once, about 7 minutes, and then cached by pip."
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

# What only some verbs need, and only the slow tests: about 3 minutes and 600 MB, of which lm-eval brings 45 packages.
.venv/extras: .venv/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev,eval]"
	touch $@

# llama.cpp's own sources, inside llama-cpp-python's sdist: its converter is what the tests compare with.
.venv/llama.cpp: | .venv/installed
	rm -rf .venv/sdist && mkdir -p .venv/sdist
	$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-python -d .venv/sdist llama-cpp-python==$(LLAMA_CPP_PYTHON)
	tar -xzf .venv/sdist/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz -C .venv/sdist
	mv .venv/sdist/llama_cpp_python-$(LLAMA_CPP_PYTHON)/vendor/llama.cpp $@
	rm -rf .venv/sdist

clean:
	rm -rf .venv demo
