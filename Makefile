# Two commands are all a new user needs: `make fly` and `make test`.
# Both create the environment in .venv on first use; ARGS reaches simulate.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?= --gpu orin --strategy pdr
# What `make test` installs besides: dev,collect,serve,dask,parquet also runs the tests that need PyTorch (a large
# download), Dask and Arrow.
EXTRAS ?= dev

.PHONY: fly test test-fast bench kernels profiles docs clean

fly: $(VENV)/installed
	@$(BIN)/simulate $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/pytest -n auto -m "not slow"
	$(BIN)/pytest -m slow

test-fast: $(VENV)/installed-dev
	$(BIN)/pytest -n auto -m "not slow"

bench: $(VENV)/installed-dev
	$(BIN)/pytest benchmarks --benchmark-enable --benchmark-columns=median,min,rounds
	$(BIN)/python benchmarks/traffic.py
	$(BIN)/python benchmarks/schedules.py
	$(BIN)/python benchmarks/validation.py
	$(BIN)/python benchmarks/plan.py

# Everything fitted or measured that the repository shows, made again from the rows that it ships.
# 'kernels' takes two minutes, 'profiles' (fits of all engines, ledger and figures of them) about ten.
kernels: $(VENV)/installed
	$(BIN)/calibrate kernels --out calibration/profiles/kernels --overwrite

profiles: $(VENV)/installed
	$(BIN)/calibrate profiles --ledger docs/fidelity.md --plots docs/residuals

docs: $(VENV)/installed
	$(BIN)/simulate --gpu orin --strategy pdr --plot docs/pdr-on-orin.png > docs/pdr-on-orin.txt
	$(BIN)/validate calibration/data/runs/edgereasoning.csv --report build/orin > docs/validation-orin.txt; test $$? -le 1
	cp build/orin/figures/predicted_measured.png docs/validation-orin.png
	$(BIN)/simulate traffic --gpu a100 --model llama-3.1-8b --trace azure-2023-conv --time-scale 0.75 \
		--goodput ttft:1000 tpot:100 --plot docs/traffic.png > docs/traffic.txt
	$(BIN)/validate strategies --markdown docs/strategies.md > /dev/null
	$(BIN)/validate simulator --markdown docs/laws.md > /dev/null
	$(BIN)/python examples/case_studies.py --markdown > docs/case-studies.md
	$(BIN)/python -m validate.self_test > docs/self-test.md

# --no-compile: byte code is written on first import, and only for what is used.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Tokenflight needs Python 3.11 or newer, found " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
