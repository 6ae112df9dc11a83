# Two commands for a newcomer: `make demo` and `make test`. Each sets up all that it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint setup test-chart test-vllm test-templates test-redis test-kubernetes test-native test-page test-chaos soak test-fidelity test-aiperf clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: setup
	$(BIN)/warmroute demo

# A file's tests stay together: they share what is started for them.
test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What a real Helm makes of the chart, and Kubernetes' schemas of 1.25 to 1.37 of that: 250 MB into .helm, once.
test-chart: setup
	$(BIN)/python -m tests_chart.install
	$(BIN)/python -m pytest tests_chart

# The gateway in front of two real vLLM servers on the CPU. The first run installs vLLM (3.5 GB) into .venv-vllm;
# VLLM_PIP="--extra-index-url …" says where torch's CPU build is, and VLLM_SPECULATIVE=eagle3 (or vLLM's own
# '{"method": "ngram", …}') gives the servers a drafter, whose rule must be learned.
test-vllm: setup
	$(BIN)/python -m tests_vllm.install $(VLLM_PIP)
	$(BIN)/python -m pytest tests_vllm

# Some 790 real chat templates, each with 130 chats: our texts are those of real vLLM's own functions. 5 minutes, and the
# installs of vLLM (as above) and of the templates (.venv-templates) before.
test-templates: setup
	$(BIN)/python -m tests_vllm.install $(VLLM_PIP)
	$(BIN)/python -m tests_templates.install
	$(BIN)/python -m pytest tests_templates

# The index that gateways share, against a real server: `apt-get install redis-server` (or valkey-server) first.
test-redis: setup
	$(BIN)/python -m pytest tests_redis

# Pods found by a real kube-apiserver on loopback. The first run builds it from Debian's sources (bookworm, as root: 10
# minutes, 3 GB meanwhile) into .apiserver, or where APISERVER_HOME says.
test-kubernetes: setup
	tests_kubernetes/build.sh
	$(BIN)/python -m pytest tests_kubernetes

# The page in a real browser (`apt-get install chromium` first), before 256 simulated pods; leaves screenshots in .page.
test-page: setup
	$(BIN)/python -m pytest -s tests_page

# Everything again, with the hot path as machine code, in a copy of its own. Needs a C compiler; 10 minutes.
test-native: setup
	rm -rf .native && mkdir .native
	cp -r $(filter-out .native,$(wildcard *)) .native
	cd .native && ../$(BIN)/python -m router native && ../$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --ignore tests/test_package.py

# Pods killed, stopped, slowed and lied for under steady load: every request is counted. Some minutes.
test-chaos: setup
	$(BIN)/python -m pytest tests_chaos

# The same with uploads, adapters, salts and operators beside, for an hour (SOAK_MINUTES=6): nothing hangs or grows.
soak: setup
	$(BIN)/python -m pytest tests_soak

# Our OpenAPI description held against the gateway by schemathesis, and the Messages API by anthropic's own client, in a
# venv of their own.
test-fidelity: setup .venv-fidelity/.ready
	$(BIN)/python -m pytest tests_fidelity

.venv-fidelity/.ready: Makefile
	$(PYTHON) -m venv .venv-fidelity
	.venv-fidelity/bin/python -m pip install --quiet --disable-pip-version-check 'schemathesis>=4,<5' 'anthropic>=1,<3'
	touch $@

# AIPerf, a load generator of others, before the gateway, in a venv of its own (1 GB).
test-aiperf: setup .venv-aiperf/.ready
	$(BIN)/python -m pytest tests_aiperf

.venv-aiperf/.ready: Makefile
	$(PYTHON) -m venv .venv-aiperf
	.venv-aiperf/bin/python -m pip install --quiet --disable-pip-version-check 'aiperf>=0.13,<0.14'
	touch $@

clean:
	rm -rf $(VENV) .native
