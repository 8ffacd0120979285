"""A few seeds of each kind of world: no task starts an execution twice, and none goes without its own."""

from __future__ import annotations

import pytest

from tests.submission.explorer import WORLDS, explore

# In these, what is ambiguous can be explained only by another task whose response was lost at the same time.
CALM = ("quiet", "crashes", "stops", "lags of 0-120 s")


@pytest.mark.parametrize("name", WORLDS)
def test_no_execution_is_started_twice_and_none_is_shared(name):
    found = explore(name, range(4))
    assert (found["duplicates"], found["losses"]) == (0, 0)
    assert found["success"] + found["ambiguous"] + found["failed"] == found["tasks"]


@pytest.mark.parametrize("name", CALM)
def test_a_start_without_a_payload_is_never_ambiguous_in_a_calm_world(name):
    assert explore(name, range(4))["avoidable"] == 0
