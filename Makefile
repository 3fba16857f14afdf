# Everything works from a clean clone on Debian as root; see scripts/ for what each target runs.
.PHONY: help setup demo test tenants hostile crash fuzz e2e cluster engines engines-vllm check bench bench-quick protos manifests tools requirements clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  \1	/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## install system packages and the virtual environment
	@scripts/setup

demo:  ## a real model from a real registry into a mount, narrated (root)
	@scripts/demo

test:  ## all checks and all tests (root)
	@scripts/test

tenants: setup  ## two tenants on one node, a hundred attempts: build/tenants.jsonl (root)
	@.venv/bin/pytest -q tests/tenants

check: setup  ## format, lint, types, layers, generated files
	@scripts/check

fuzz: setup  ## fuzz every parser for SECONDS, 60 unless given: findings in build/fuzz
	@.venv/bin/python -m tests.fuzz --seconds $(or $(SECONDS),60)

hostile: setup  ## play every attack of the threat model to one driver (root): build/hostile.jsonl
	@.venv/bin/pytest -q tests/hostile

crash: setup  ## kill, cut the power, fail system calls and disks, a thousand times and more (root): build/crash.jsonl
	@CRASH=long .venv/bin/pytest -q tests/faults/test_kills.py tests/faults/test_power_cuts.py tests/faults/test_system_calls.py \
	  tests/faults/test_disks.py

e2e:  ## scenarios on a real Kubernetes that is built here (root; the first time half an hour)
	@scripts/e2e

cluster:  ## that Kubernetes with modelmount on it, and a shell (root)
	@scripts/cluster

engines:  ## llama.cpp serves a real model from a volume (root, fetches 130 MB; TRANSFORMERS=1 for shards too: 2.4 GB)
	@scripts/engines $(if $(TRANSFORMERS),--transformers)

engines-vllm:  ## vLLM's build for processors serves shards from a volume (root, x86-64; fetches 3 GB, keeps 6)
	@scripts/engines --vllm -k test_vllm

bench: setup  ## measure against the other clients (root, an hour, 40 GB): bench/results/latest.json
	@scripts/peers
	@.venv/bin/python -m bench

bench-quick: setup  ## the same on small sizes, in minutes: bench/results/quick.json
	@scripts/peers
	@.venv/bin/python -m bench --quick

protos: setup  ## generate csi/ from protos/
	@scripts/protos

manifests: setup  ## write deploy/manifests and the values' schema from the chart
	@scripts/manifests

tools: setup  ## build the pinned Go programs into the cache
	@scripts/tools

requirements: setup  ## compile the hashed requirement lists
	@scripts/requirements

clean:  ## remove what the tools leave in the tree, the virtual environment too
	@rm -rf .venv build dist .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
