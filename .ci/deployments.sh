#!/usr/bin/env bash
# Check the guarantees of deployments, one after the other, and print one table of them: deployments.sh [AIRFLOW/EXECUTOR...]
# Executors are local, celery and pods; without a word all of them, with each Airflow of matrix.txt. QUICK=1 is quick.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=.cache/deployments.jsonl
mkdir -p .cache && rm -f "$rows"
[ $# -gt 0 ] || set -- $(awk '!seen[$1]++ { print $1 "/local", $1 "/celery", $1 "/pods" }' .ci/matrix.txt)
failed=0
for deployment in "$@"; do
  environment=$(.ci/airflow_environment.sh "${deployment%/*}")
  "$environment/bin/python" tests/deployment/deployments.py --executors "${deployment#*/}" ${QUICK:+--quick} --rows "$rows" || failed=1
done
"$environment/bin/python" tests/deployment/deployments.py --table "$rows" || failed=1
exit $failed
