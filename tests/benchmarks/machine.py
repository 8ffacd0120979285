"""What a benchmark ran on: the machine, and the versions of what took part."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DISTRIBUTIONS = (
    "airflow-provider-techflow",
    "apache-airflow",
    "apache-airflow-providers-http",
    "apache-airflow-providers-dbt-cloud",
    "apache-airflow-providers-airbyte",
    "apache-airflow-providers-databricks",
    "airflow-provider-fivetran-async",
    "airflow-provider-hightouch",
    "pyrate-limiter",
    "limits",
    "httpx",
    "redis",
)


def machine() -> str:
    """Return processor, cores, memory and kernel."""
    model = _found(r"model name\s*: (.*)", Path("/proc/cpuinfo")) or platform.machine()
    kilobytes = _found(r"MemTotal:\s*(\d+)", Path("/proc/meminfo"))
    memory = f"{int(kilobytes) / 1024**2:.1f} GiB of memory" if kilobytes else "memory unknown"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory}, {platform.system()} {platform.release()}"


def _found(pattern: str, file: Path) -> str | None:
    found = re.search(pattern, file.read_text()) if file.exists() else None
    return found[1] if found else None


def versions() -> str:
    """Return the versions of Python, the packages that are installed and the servers."""
    named = {"Python": platform.python_version()}
    named |= {each: _version(each) for each in DISTRIBUTIONS}
    named |= {"SQLite": sqlite3.sqlite_version, "Redis server": _redis_server()}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


def _redis_server() -> str:
    program = shutil.which("redis-server")
    if program is None:
        return "(not installed)"
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", version)
    return found[1] if found else version.strip()
