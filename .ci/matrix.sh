#!/usr/bin/env bash
# Install the built wheel next to each supported Airflow and run the tests that need Airflow, two lines at a time, since
# the DAGs of the tests also wait. A line of matrix.txt names Airflow, Python, and further requirements: in one line the
# oldest of each that the package allows, in others what Airflow's own constraints hold back and its requirements do not.
# With the newest FastAPI, pydantic, Starlette or svcs, Airflow 3.0 and 3.2 run no task at all. In one line OpenLineage
# is there, for the tests of what it receives.
set -euo pipefail
cd "$(dirname "$0")/.."

# Called by xargs: matrix.sh --line AIRFLOW PYTHON [REQUIREMENT...]
if [ "${1:-}" = --line ]; then
  source .ci/find_python.sh
  airflow=$2 version=$3 name=matrix-$2-$3 checkout=$PWD
  shift 3
  log=.cache/$name.log
  echo "· Airflow $airflow on Python $version${*:+ with $*}" > "$log"
  test_line() {
    .ci/environment.sh "$name" "$(find_python "$version")" wheel "apache-airflow==$airflow" "apache-airflow-providers-http>=5.3" "$@" --group test &&
      .cache/environments/uv/bin/uv pip check --quiet -p ".cache/environments/$name/bin/python" &&
      cd "$(mktemp -d)" &&
      "$checkout/.cache/environments/$name/bin/pytest" -q -c "$checkout/pyproject.toml" --rootdir "$checkout" \
        -p no:cacheprovider "$checkout/tests/integration" "$checkout/tests/operators" --durations=3
  }
  failed=0
  (test_line "$@") >> "$log" 2>&1 || failed=1
  [ $failed = 0 ] || echo "· FAILED: Airflow $airflow on Python $version" >> "$log"
  cat "$log"
  exit $failed
fi
xargs -P 2 -L 1 .ci/matrix.sh --line < "${1:-.ci/matrix.txt}"
