#!/usr/bin/env bash
# Install the built wheel next to each supported Airflow and run the tests that need Airflow. A line of matrix.txt names
# Airflow, Python, and further requirements: in one line the oldest of each that the package allows, in others
# what Airflow's own constraints hold back and its requirements do not. With the newest FastAPI, pydantic, Starlette or
# svcs, Airflow 3.0 and 3.2 run no task at all. In one line OpenLineage is there, for the tests of what it receives.
set -euo pipefail
cd "$(dirname "$0")/.."

source .ci/find_python.sh

failed=0
while read -r airflow version extra; do
  python=$(find_python "$version")
  read -ra also <<< "$extra"
  name=matrix-$airflow-$version
  .ci/environment.sh "$name" "$python" wheel "apache-airflow==$airflow" "apache-airflow-providers-http>=5.3" "${also[@]}" --group test
  echo "· Airflow $airflow on Python $version${extra:+ with $extra}"
  .cache/environments/uv/bin/uv pip check --quiet -p ".cache/environments/$name/bin/python"
  checkout=$PWD
  if ! (cd "$(mktemp -d)" && "$checkout/.cache/environments/$name/bin/pytest" -q --numprocesses 2 --dist loadfile -c "$checkout/pyproject.toml" \
        --rootdir "$checkout" -p no:cacheprovider "$checkout/tests/integration" "$checkout/tests/operators" --durations=3); then
    failed=1
    echo "· FAILED: Airflow $airflow on Python $version"
  fi
done < "${1:-.ci/matrix.txt}"
exit $failed
