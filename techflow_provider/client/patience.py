"""Decide whether a failed look at the history ends a wait, for every kind of wait."""

from __future__ import annotations

from collections.abc import Callable

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    RateLimitError,
    ServerError,
    TechFlowError,
    TransportError,
    UnexpectedResponseError,
)

# The next look may go well after these; every other error says that no look ever will.
PASSING = (BudgetTimeoutError, RateLimitError, ServerError, TransportError, UnexpectedResponseError)


def passes(error: TechFlowError) -> bool:
    """Whether the next look may succeed although this one failed."""
    return isinstance(error, PASSING)


def bear(error: TechFlowError, warn: Callable[..., None]) -> None:
    """Tell a wait's log that a look failed and is repeated.

    :param warn: a logger's `warning`
    :raises TechFlowError: the same error, when no look ever will succeed
    """
    if not passes(error):
        raise error
    warn("A look at the execution history failed and is repeated: %s", error)


def backoff_seconds(interval_seconds: float, failures: int, longest_seconds: float = 60.0) -> float:
    """Return the time to the next look: the interval, doubled with each failure in a row, up to a bound."""
    longest = max(interval_seconds, longest_seconds)
    return min(interval_seconds * 2.0 ** min(failures, 30), longest)
