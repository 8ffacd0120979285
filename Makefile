# Every target creates its own environment in .cache/ and needs Python 3.11, 3.12 or 3.13 and git.
PYTHON ?= python3
AIRFLOW ?= 3.3.2
EXECUTOR ?= celery
ENVIRONMENTS := .cache/environments
# How long `make test` takes on two idle cores.
TEST_MINUTES := 2
# Versions that this Airflow can't run with, from the matrix.
HELD_BACK := $(foreach held,$(shell awk '$$1 == "$(AIRFLOW)" { $$1 = $$2 = ""; print; exit }' .ci/matrix.txt),"$(held)")
# Test files run in parallel. Tests that need a deployment have targets of their own.
TESTS := -q --numprocesses auto --maxprocesses 4 --dist loadfile --ignore tests/contract --ignore tests/documents --ignore tests/deployment --ignore tests/network
# Environments that several targets use.
TEST_ENVIRONMENT = .ci/environment.sh test "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" "apache-airflow-providers-http>=5.3" --group test
DEPLOYMENT = $(ENVIRONMENTS)/airflow-$(AIRFLOW)/bin/python
export PYTHON
# Without bytecode every process compiles Airflow anew, which takes longer than most tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test lint types matrix fuzz network contract docs deployment deployments scenarios explore bench e2e soak wheel mutants clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Create a workflow, start it and wait for it in a real Airflow against the sandbox
	@.ci/environment.sh demo "$(PYTHON)" wheel "apache-airflow==$(AIRFLOW)"
	@$(ENVIRONMENTS)/demo/bin/python .ci/demo.py

test: ## Run the tests, including those in a real Airflow
	@echo "· about $(TEST_MINUTES) minutes on two idle cores"
	@$(TEST_ENVIRONMENT)
	@if command -v redis-server >/dev/null; then $(ENVIRONMENTS)/test/bin/pytest $(TESTS); else \
	  echo "· redis-server is not installed (apt-get install redis-server): skipping the tests that use Redis"; \
	  $(ENVIRONMENTS)/test/bin/pytest $(TESTS) -k "not redis"; fi

lint: ## Check style and types
	@.ci/environment.sh lint "$(PYTHON)" editable --group lint
	@$(ENVIRONMENTS)/lint/bin/ruff format --check .
	@$(ENVIRONMENTS)/lint/bin/ruff check .
	@$(ENVIRONMENTS)/lint/bin/mypy

types: ## Check the types of the wheel with mypy and pyright, as users see them
	@.ci/environment.sh types "$(PYTHON)" wheel "apache-airflow==$(AIRFLOW)" "apache-airflow-providers-http>=5.3" redis mypy "pyright[nodejs]"
	@$(ENVIRONMENTS)/types/bin/python .ci/check_types.py

matrix: ## Run the Airflow tests with the built wheel on every supported Airflow, or on one (ONLY=2.11.2)
	@mkdir -p .cache
	@grep '^$(ONLY)' .ci/matrix.txt > .cache/matrix.txt
	@.ci/matrix.sh .cache/matrix.txt

fuzz: ## Give random input to what reads responses, webhooks, connections and prints them (SECONDS=600 for each)
	@.ci/environment.sh fuzz "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" flask --group test
	@$(ENVIRONMENTS)/fuzz/bin/python -m tests.fuzz.run --seconds $(or $(SECONDS),30)

network: ## Reach TLS servers through Squid, tinyproxy and microsocks (needs them and OpenSSL installed)
	@.ci/environment.sh network "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" "httpx[socks]" --group test
	@$(ENVIRONMENTS)/network/bin/pytest -q tests/network

contract: ## Check the sandbox against its OpenAPI document
	@.ci/environment.sh contract "$(PYTHON)" editable --group contract
	@$(ENVIRONMENTS)/contract/bin/pytest -q tests/contract

docs: ## Build the documentation, check its links and run its code blocks
	@.ci/environment.sh docs "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" "apache-airflow-providers-http>=5.3" --group docs
	@$(ENVIRONMENTS)/docs/bin/python docs/build.py

deployment: ## Kill and clear tasks in a complete Airflow deployment (AIRFLOW=2.11.2; needs PostgreSQL)
	@.ci/airflow_environment.sh $(AIRFLOW) >/dev/null
	@$(DEPLOYMENT) -m pytest -q -s tests/deployment

deployments: ## Show which guarantees hold in which deployment (ONLY="3.3.2/pods 2.11.2/celery", QUICK=1; needs Redis and PostgreSQL)
	@QUICK=$(QUICK) .ci/deployments.sh $(ONLY)

scenarios: ## Treat tasks roughly in a complete Airflow, and show what became of them (AIRFLOW=2.11.2, QUICK=1, ONLY="sigterm pool"; needs PostgreSQL)
	@environment=$$(.ci/airflow_environment.sh $(AIRFLOW) $(if $(QUICK),,scenarios apache-airflow-providers-openlineage)) && \
	  $$environment/bin/python tests/deployment/scenarios.py $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

explore: ## Explore starts in worlds that differ from the model, in virtual time (SEEDS=20)
	@$(TEST_ENVIRONMENT)
	@$(ENVIRONMENTS)/test/bin/python -m tests.submission.explorer --seeds $(or $(SEEDS),200)

bench: ## Run the benchmarks and write tests/benchmarks/RESULTS.md (BENCH=--quick or BENCH="--only parse"; needs Redis and PostgreSQL)
	@.ci/environment.sh bench "$(PYTHON)" wheel "apache-airflow==$(AIRFLOW)" $(HELD_BACK) apache-airflow-providers-http apache-airflow-providers-dbt-cloud apache-airflow-providers-airbyte apache-airflow-providers-databricks airflow-provider-fivetran-async airflow-provider-hightouch pyrate-limiter filelock limits redis statsd psycopg2-binary asyncpg
	@$(ENVIRONMENTS)/bench/bin/python tests/benchmarks/table.py $(BENCH)

e2e: ## Run 200 steps with Celery workers, or 40 with EXECUTOR=local, through a complete Airflow (STEPS=20; needs Redis and PostgreSQL)
	@.ci/airflow_environment.sh $(AIRFLOW) >/dev/null
	@$(DEPLOYMENT) tests/deployment/e2e.py --executor $(EXECUTOR) $(if $(STEPS),--steps $(STEPS))

soak: ## Run 500 steps with Celery workers while workers, triggerers, Redis and TechFlow are killed
	@.ci/airflow_environment.sh $(AIRFLOW) >/dev/null
	@$(DEPLOYMENT) tests/deployment/soak.py

wheel: ## Build the wheel and the source archive, and check them
	@.ci/environment.sh wheel "$(PYTHON)" editable twine
	@rm -rf dist
	@$(ENVIRONMENTS)/uv/bin/uv build --quiet
	@$(ENVIRONMENTS)/wheel/bin/twine check --strict dist/*
	@$(ENVIRONMENTS)/wheel/bin/python .ci/check_package.py

mutants: ## Change the core of the package one line at a time and list what no test notices (MODULES="state/gcra.py")
	@$(TEST_ENVIRONMENT)
	@$(ENVIRONMENTS)/test/bin/python tests/mutants/run.py $(MODULES)

clean: ## Remove everything that the other targets created
	@rm -rf .cache .demo build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
