# A fresh machine needs Python 3.11 or later, git and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test lint bench cluster cluster-down autoscale-demo clean

demo: $(VENV)/demo.stamp  ## environment, real data, pretraining on Ray, zero-shot table
	$(BIN)/python jobs/pretrain.py --config demo

test: $(VENV)/dev.stamp  ## environment and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint cluster/kuberay/Dockerfile

bench: $(VENV)/bench.stamp  ## each prints a table of this project beside a peer
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/recovery.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/evaluate.py
	$(BIN)/python benchmarks/features.py

cluster: $(VENV)/demo.stamp  ## a Ray cluster of several nodes on this machine, which come and go with the work
	$(BIN)/python -m cluster.local up

cluster-down:
	$(BIN)/python -m cluster.local down

autoscale-demo: $(VENV)/demo.stamp  ## a run that grows over such nodes, loses one, and ends; drawn over time
	$(BIN)/python -m cluster.local.demo

clean:
	rm -rf $(VENV) build *.egg-info

# One stamp an extra, so that an environment is brought up to date when pyproject.toml changes.
$(VENV)/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@
