#!/usr/bin/env bash
# Make a Python environment with this package in it: environment.sh NAME PYTHON MODE [uv pip install arguments...]
# Without arguments, only what makes environments is installed.
# MODE is "editable" for work on the checkout, or "wheel" for the package as users get it.
set -euo pipefail
cd "$(dirname "$0")/.."
home=.cache/environments

if [ ! -x "$home/uv/bin/uv" ]; then
  echo "· installing uv"
  "${PYTHON:-python3}" -m venv "$home/uv"
  "$home/uv/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
[ $# -gt 0 ] || exit 0
name=$1 python=$2 mode=$3
shift 3
environment=$home/$name
uv=$home/uv/bin/uv

wanted="$python $mode $* $(cat pyproject.toml | cksum)"
[ "$mode" = editable ] || wanted="$wanted $(cat $(git ls-files techflow_provider) | cksum)"
if [ "$(cat "$environment/made-of" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

echo "· making the environment '$name' ($*)"
rm -rf "$environment"
"$uv" venv --quiet --no-python-downloads -p "$python" "$environment"
if [ "$mode" = editable ]; then
  "$uv" pip install --quiet -p "$environment/bin/python" -e . "$@"
else
  rm -rf "$home/$name-wheel"
  "$uv" build --quiet --wheel --out-dir "$home/$name-wheel" .
  "$uv" pip install --quiet -p "$environment/bin/python" "$home/$name-wheel"/*.whl "$@"
fi
printf '%s' "$wanted" > "$environment/made-of"
