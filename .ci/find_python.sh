# Sourced: find_python VERSION prints the path of a Python of that version.
find_python() {
  for candidate in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "import sys; assert sys.version_info[:2] == (${1/./, })" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python $1 is needed for this Airflow and was not found" >&2
  exit 1
}
