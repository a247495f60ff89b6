# Every target makes its own virtual environment on first use.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := --quiet --disable-pip-version-check --no-compile -c constraints.txt
READY := .venv/ready
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo check test lint torture fuzz bench gpu clean

demo: $(READY)          ## teach, distil, measure and report on real digits, in a few minutes on two cores
	$(BIN)/progdist run digits

check: lint             ## lint, types, contracts and the quick tests, in about six minutes
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test: lint browser      ## everything that is checked
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/pyright

torture: $(READY)       ## a tiny run killed at 200 random points, each continued to the same bits
	KILLS=200 $(BIN)/pytest -n 2 --dist worksteal tests/runs/test_interruption.py -k killed

fuzz: $(READY)          ## a thousand changed files of each kind that is read
	FUZZ=1000 $(BIN)/pytest -s tests/test_damaged_files.py

bench: $(READY)         ## the cost of one update and one sample, against the bare network and stock code
	$(BIN)/python benchmarks/performance/cost.py

gpu: $(READY)           ## on a machine with CUDA: parity with the CPU, speed, memory, whole runs, in under ten minutes
	$(BIN)/python benchmarks/performance/gpu.py

docs: $(READY)          ## the documentation as a site, in build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

notebooks: $(READY)     ## the pictures that are committed with a notebook, made anew
	cd examples/notebooks && PATH="$(CURDIR)/$(BIN):$$PATH" jupyter execute --inplace --NotebookClient.record_timing=False points.ipynb

wheel:                  ## the wheel, in an empty environment of $(PYTHON) and without a compiler: a tiny run and its samples
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel/empty
	build/wheel/empty/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	build/wheel/empty/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -c constraints.txt torch
	build/wheel/empty/bin/pip install --quiet --disable-pip-version-check --only-binary :all: -c constraints.txt build/wheel/*.whl
	cd build/wheel && unset PYTHONPATH && empty/bin/python --version && empty/bin/progdist --version && empty/bin/progdist recipes \
	  && empty/bin/progdist run digits --out run --set network.width=8 --set network.groups=4 --set teacher.updates=2 \
	    --set distill.chain=[8,4] --set distill.stages={} --set distill.updates=1 \
	    --set evaluate.samples=16 --set evaluate.resamples=2 \
	  && empty/bin/progdist sample run/student-0004 -n 4 --out four.png && test -s four.png && test -s run/report.html

dist:                   ## what a release uploads, in build/dist: wheel and sdist, with their metadata checked
	rm -rf build/dist
	$(PYTHON) -m venv build/tools
	build/tools/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build twine
	build/tools/bin/python -m build --outdir build/dist .
	build/tools/bin/twine check --strict build/dist/*

.PHONY: browser docs notebooks wheel dist
browser: $(READY)       ## headless Chromium, for the test of the report; the test is skipped where it cannot be had
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null \
	  || echo "chromium could not be installed: the test of the report is skipped"; \
	else echo "chromium is not here and only root can install it: the test of the report is skipped"; fi

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install $(INSTALL) torch
	$(BIN)/pip install $(INSTALL) -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist
