# Everything makes its own environment below .cache/ and needs Python 3.11, 3.12 or 3.13 and git.
PYTHON ?= python3
AIRFLOW ?= 3.3.2
EXECUTOR ?= celery
ENVIRONMENTS := .cache/environments
# What this Airflow does not run with, as the matrix has it.
HELD_BACK := $(foreach held,$(shell awk '$$1 == "$(AIRFLOW)" { $$1 = $$2 = ""; print; exit }' .ci/matrix.txt),"$(held)")
# Files run side by side; those that need a deployment of their own have their own targets.
TESTS := -q --numprocesses auto --maxprocesses 4 --dist loadfile --ignore tests/contract --ignore tests/deployment
# Environments that two targets use.
TEST_ENVIRONMENT = .ci/environment.sh test "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" "apache-airflow-providers-http>=5.3" --group test
E2E_ENVIRONMENT = .ci/environment.sh e2e-$(AIRFLOW) "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" $(HELD_BACK) "apache-airflow-providers-http>=5.3" apache-airflow-providers-celery redis psycopg2-binary asyncpg statsd
export PYTHON

.PHONY: demo test lint matrix contract deployment e2e soak bench wheel mutants clean

demo: ## Create a workflow, start it and wait for it, in a real Airflow against the sandbox
	@.ci/environment.sh demo "$(PYTHON)" wheel "apache-airflow==$(AIRFLOW)"
	@$(ENVIRONMENTS)/demo/bin/python .ci/demo.py

test: ## Run the tests, those in a real Airflow among them
	@$(TEST_ENVIRONMENT)
	@if command -v redis-server >/dev/null; then $(ENVIRONMENTS)/test/bin/pytest $(TESTS); else \
	  echo "· redis-server is not installed (apt-get install redis-server): the tests on Redis are left out"; \
	  $(ENVIRONMENTS)/test/bin/pytest $(TESTS) -k "not redis"; fi

lint: ## Check style and types
	@.ci/environment.sh lint "$(PYTHON)" editable --group lint
	@$(ENVIRONMENTS)/lint/bin/ruff format --check .
	@$(ENVIRONMENTS)/lint/bin/ruff check .
	@$(ENVIRONMENTS)/lint/bin/mypy

matrix: ## Run the Airflow tests with the built wheel on every supported Airflow
	@.ci/matrix.sh

contract: ## Check the sandbox against its OpenAPI document
	@.ci/environment.sh contract "$(PYTHON)" editable --group contract
	@$(ENVIRONMENTS)/contract/bin/pytest -q tests/contract

deployment: ## Kill and clear tasks in a real Airflow with all its processes (AIRFLOW=2.11.2 for another; needs PostgreSQL's programs)
	@.ci/environment.sh deployment-$(AIRFLOW) "$(PYTHON)" editable "apache-airflow==$(AIRFLOW)" $(HELD_BACK) psycopg2-binary asyncpg --group test
	@$(ENVIRONMENTS)/deployment-$(AIRFLOW)/bin/python -m pytest -q -s tests/deployment

bench: ## Run all benchmarks beside other libraries and providers, and write tests/benchmarks/RESULTS.md (BENCH="--quick", "--only parse"; needs redis-server and PostgreSQL's programs)
	@.ci/environment.sh bench "$(PYTHON)" wheel "apache-airflow==$(AIRFLOW)" $(HELD_BACK) apache-airflow-providers-http apache-airflow-providers-dbt-cloud apache-airflow-providers-airbyte apache-airflow-providers-databricks airflow-provider-fivetran-async airflow-provider-hightouch pyrate-limiter filelock limits redis statsd psycopg2-binary asyncpg
	@$(ENVIRONMENTS)/bench/bin/python tests/benchmarks/table.py $(BENCH)

e2e: ## Run steps through a whole Airflow: 200 with Celery workers, 40 with EXECUTOR=local, or STEPS=… (apt-get install postgresql redis-server)
	@$(E2E_ENVIRONMENT)
	@$(ENVIRONMENTS)/e2e-$(AIRFLOW)/bin/python tests/deployment/e2e.py --executor $(EXECUTOR) $(if $(STEPS),--steps $(STEPS))

soak: ## Run 500 steps through Celery workers while workers, triggerers, Redis and TechFlow are killed
	@$(E2E_ENVIRONMENT)
	@$(ENVIRONMENTS)/e2e-$(AIRFLOW)/bin/python tests/deployment/soak.py

wheel: ## Build the wheel and the source archive, and check them
	@.ci/environment.sh wheel "$(PYTHON)" editable twine
	@rm -rf dist
	@$(ENVIRONMENTS)/uv/bin/uv build --quiet
	@$(ENVIRONMENTS)/wheel/bin/twine check --strict dist/*
	@$(ENVIRONMENTS)/wheel/bin/python .ci/check_package.py

mutants: ## Break the heart of the package on purpose, one line at a time, and list what its tests let pass (MODULES="state/bucket.py" for some)
	@$(TEST_ENVIRONMENT)
	@$(ENVIRONMENTS)/test/bin/python tests/mutants/run.py $(MODULES)

clean: ## Remove what the other targets made
	rm -rf .cache .demo dist
