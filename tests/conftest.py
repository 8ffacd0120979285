"""What all tests share: a TechFlow sandbox in which time stands still."""

from __future__ import annotations

import os
import tempfile

import hypothesis
import pytest

from techflow_provider.client.transport import CA_VARIABLES
from techflow_provider.sandbox import ManualClock, Sandbox

# Airflow makes its home and opens its database when it is imported, which some tests do while they are collected; both
# must not be the user's.
os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="airflow-")
# Airflow 2.11 warns at every start until this is set.
os.environ["AIRFLOW__METRICS__TIMER_UNIT_CONSISTENCY"] = "True"
os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{os.environ['AIRFLOW_HOME']}/airflow.db"

# Each client would read all certificates of the machine, which takes longer than most tests.
for name in CA_VARIABLES:
    os.environ.pop(name, None)

# A loaded machine takes any time for an example.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture
def api_key() -> str:
    """The key that the sandbox accepts."""
    return "test-key-0123456789"


@pytest.fixture
def clock() -> ManualClock:
    """The sandbox's time; it stands still until it is advanced."""
    return ManualClock()


@pytest.fixture
def sandbox(clock: ManualClock, api_key: str) -> Sandbox:
    """A sandbox whose executions take 5 seconds and complete."""
    return Sandbox(api_keys=(api_key,), clock=clock, seed=1)
