"""A few random inputs for each reader of input from outside; `make fuzz` tries more."""

from __future__ import annotations

import pytest

from tests.fuzz.driver import run
from tests.fuzz.run import DEFAULT_SEED, TARGETS

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("default")]
CALLS = {"client": 400, "connection": 400, "console": 12, "fastapi": 300, "flask": 300}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_random_input_raises_nothing_else_than_the_errors_of_the_package(name: str) -> None:
    with TARGETS[name]() as case:
        outcome = run(name, case, DEFAULT_SEED, calls=CALLS[name])
    assert outcome.passed, str(outcome)
    assert len(outcome.kinds) > 1
