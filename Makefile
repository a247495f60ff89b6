# Every target makes its own virtual environment on first use.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo check test lint torture fuzz bench gpu clean

demo: $(READY)          ## teach, distil, measure and report on real digits, in about six minutes on two cores
	$(BIN)/progdist run digits --out runs/demo

check: lint             ## lint, types, contracts and the quick tests, in about two minutes
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
	$(BIN)/python benchmarks/performance.py

gpu: $(READY)           ## on a machine with CUDA: parity with the CPU, speed, memory, whole runs, in under ten minutes
	$(BIN)/python benchmarks/gpu.py

docs: $(READY)          ## the documentation as a site, in build/site; warnings are errors
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.PHONY: browser docs
browser: $(READY)       ## headless Chromium, for the test of the report; the test is skipped where it cannot be had
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null \
	  || echo "chromium could not be installed: the test of the report is skipped"; \
	else echo "chromium is not here and only root can install it: the test of the report is skipped"; fi

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

clean:
	rm -rf .venv build dist
