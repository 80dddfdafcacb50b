# The commands people and CI run.  A machine with git, make and Python 3.11 or newer is enough.

# Read by pip and by the builds that pip starts.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export CMAKE_GENERATOR := Unix Makefiles
export CMAKE_BUILD_PARALLEL_LEVEL := $(shell nproc)

python := .venv/bin/python
pip := $(python) -m pip install --quiet
build_requires := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
package_inputs := CMakeLists.txt build_ffi.py pyproject.toml $(shell find csrc cmake)
c_files := find csrc cmake tests fuzz benchmarks examples -name '*.[ch]' -o -name '*.[ch]pp'
benchmarks := small_files direct_writer filesystem_writer zstd_writer small_chunks reader checksum memory scaling checkpoint s3 azure_blob

.NOTPARALLEL:
.PHONY: help demo test test-c test-python sanitize coverage fuzz soak docs wheel bench lint format clean tools FORCE

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 | /p' Makefile | while IFS='|' read -r name text; do printf 'make %-13s%s\n' "$$name" "$$text"; done

demo: .venv/.package ## Set up what is missing, build the package, run the example
	$(python) examples/demo.py

test: lint test-c sanitize test-python ## Set up what is missing, then run every check; what CI runs

test-c: .venv/.ready ## Run the C tests as released
	scripts/test-c

test-python: .venv/.dev tools ## Run the Python tests
	$(python) -m pytest

sanitize: .venv/.ready ## Run the C tests with the address, undefined behaviour and thread sanitizers
	scripts/test-c address,undefined
	scripts/test-c thread

coverage: .venv/.dev ## Show which lines and branches of the C library its tests reach
	scripts/coverage

fuzz: .venv/.ready tools ## Run the fuzz targets for a short time each
	scripts/fuzz
	scripts/fuzz planted

soak: .venv/.dev tools ## Run the long forms of the tests that break things
	S3DLIO_SOAK=1 scripts/test-c address,undefined -R memory
	S3DLIO_SOAK=1 $(python) -m pytest tests/crash tests/faults tests/test_properties.py

docs: .venv/.ready tools ## Build the reference of the C API, in build/docs/docs/reference/html
	cmake -S . -B build/docs -DS3DLIO_DOCS=ON
	cmake --build build/docs --target reference

wheel: .venv/.dev ## Build the wheel that goes to others, in dist/
	scripts/wheel

bench: .venv/.bench ## Compare the speed with that of others, for docs/performance.md
	@set -e; for benchmark in $(benchmarks); do $(python) benchmarks/$$benchmark.py; done
	$(python) benchmarks/report.py

lint: .venv/.dev ## Check style and types
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy
	$(c_files) | xargs .venv/bin/clang-format --dry-run -Werror

format: .venv/.dev ## Put the sources in the form that lint asks for
	$(python) -m ruff check --fix
	$(python) -m ruff format
	$(c_files) | xargs .venv/bin/clang-format -i

clean: ## Remove everything that was made here
	rm -rf .venv build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Asked every time; writes its file only when it makes .venv anew.
.venv/.ready: FORCE
	@scripts/setup

tools: .venv/.ready
	@scripts/setup tools

.venv/.package: .venv/.ready $(package_inputs)
	@echo '==> Building the package'
	@$(python) -c '$(build_requires)' | $(pip) --requirement /dev/stdin
	$(pip) --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.package pyproject.toml
	@echo '==> Installing the tools for tests'
	$(pip) --group dev
	@touch $@

.venv/.bench: .venv/.dev
	@echo '==> Installing what the benchmarks compare with'
	$(pip) --group bench
	@touch $@
