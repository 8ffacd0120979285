#!/usr/bin/env bash
# Check the guarantees of deployments, two at a time because they mostly wait, and print one table of them:
# deployments.sh [AIRFLOW/EXECUTOR...]
# Executors are local, celery, pods and edge; without a word all but edge, with each Airflow of matrix.txt. QUICK=1 is quick.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=.cache/deployments.jsonl
mkdir -p .cache && rm -f "$rows"
[ $# -gt 0 ] || set -- $(awk '!seen[$1]++ { print $1 "/local", $1 "/celery", $1 "/pods" }' .ci/matrix.txt)
for deployment in "$@"; do
  case $deployment in
    */edge) environment=$(.ci/airflow_environment.sh "${deployment%/*}" edge apache-airflow-providers-edge3) ;;
    *) environment=$(.ci/airflow_environment.sh "${deployment%/*}") ;;
  esac
done
failed=0
printf '%s\n' "$@" | xargs -P 2 -I{} sh -c '
  name=airflow; [ "${1#*/}" = edge ] && name=edge
  .cache/environments/$name-${1%/*}/bin/python tests/deployment/deployments.py --executors "${1#*/}" ${QUICK:+--quick} --rows "$2"
' sh {} "$rows" || failed=1
"$environment/bin/python" tests/deployment/deployments.py --table "$rows" || failed=1
exit $failed
