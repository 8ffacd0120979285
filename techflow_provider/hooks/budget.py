"""The rate budget that belongs to a connection."""

from __future__ import annotations

from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.state.budget import Budget, LocalBudget


def open_budget(connection: TechFlowConnection) -> Budget:
    """Return the budget of a connection's API key."""
    return LocalBudget(connection.requests_per_minute, connection.burst)
