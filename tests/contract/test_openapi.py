"""Schemathesis compares the running sandbox with its OpenAPI document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from techflow_provider.sandbox import Sandbox

# It expects 405, which TechFlow doesn't document; the sandbox responds with 404.
EXCLUDED_CHECK = "unsupported_method"


@pytest.fixture
def command() -> list[str]:
    script = Path(sys.executable).with_name("schemathesis")
    assert script.exists(), "the dependency group 'contract' is not installed beside this Python"
    return [str(script)]


def test_the_sandbox_conforms_to_its_document(command, tmp_path):
    sandbox = Sandbox(limit=1_000_000, execution_seconds=0.05, workflows_at_start={"wf_123": "My Workflow"})
    with sandbox.serve() as url:
        options = ["--checks", "all", "--exclude-checks", EXCLUDED_CHECK, "--max-examples", "100", "--seed", "1"]
        schema = url.replace("/v2", "/openapi.json")
        header = f"Authorization: Bearer {sandbox.api_keys[0]}"
        run = subprocess.run(
            [*command, "run", schema, "--header", header, *options],
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
            timeout=600,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Tested: 7" in run.stdout, run.stdout
    assert sandbox.count(status=200) > 100
    assert sandbox.count(status=400) > 100
    assert sandbox.count(status=500) == 0
