#!/usr/bin/env bash
# Make the environment in which a whole deployment of an Airflow runs, with the Python and the restrictions that
# matrix.txt has for it, and print where it is: airflow_environment.sh AIRFLOW [NAME REQUIREMENT...]
set -euo pipefail
cd "$(dirname "$0")/.."
source .ci/find_python.sh

read -r version extra < <(awk -v airflow="$1" '$1 == airflow { $1 = ""; print; exit }' .ci/matrix.txt)
read -ra also <<< "$extra"
python=$(find_python "$version")
# Airflow's provider for Celery imports what Celery 5.7 no longer has. An old one, which uv prefers to an old client of
# Redis, ends the scheduler of Airflow 2.11 when a worker is lost; a new one can't hand tasks to workers on Airflow 3.0.
airflow=$1 name=${2:-airflow} celery=">=3.20"
[[ $airflow != 3.0.* ]] || celery="==3.12.*"
shift; shift || true
.ci/environment.sh "$name-$airflow" "$python" editable "apache-airflow==$airflow" "apache-airflow-providers-http>=5.3" \
  "apache-airflow-providers-celery$celery" "celery<5.7" redis psycopg2-binary asyncpg statsd "${also[@]}" "$@" --group test >&2
echo ".cache/environments/$name-$airflow"
