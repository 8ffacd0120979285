"""Decide what an error means: whether a failed look at the history ends a wait, and whether a POST had an effect."""

from __future__ import annotations

from collections.abc import Callable

from techflow_provider.client.errors import (
    BudgetTimeoutError,
    InvalidParameterError,
    RateLimitError,
    ResponseError,
    ServerError,
    TechFlowError,
    TransportError,
    UnexpectedResponseError,
)

# The next look may go well after these; every other error says that no look ever will.
PASSING = (BudgetTimeoutError, RateLimitError, ServerError, TransportError, UnexpectedResponseError)
# Answers with which a server refuses a request before it acts on it; any other may come from something in between.
REFUSALS = frozenset({*range(400, 408), *range(410, 418), *(421, 422, 423, 424, 426, 428, 429, 431, 451)})
ACCEPTED = range(200, 300)


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


def had_no_effect(error: TechFlowError) -> bool:
    """Whether a POST that failed surely changed nothing: it never left, or was refused."""
    if isinstance(error, TransportError):
        return not error.maybe_sent
    if isinstance(error, ResponseError):
        return error.status_code in REFUSALS
    return isinstance(error, BudgetTimeoutError | InvalidParameterError)


def was_accepted(error: TechFlowError) -> bool:
    """Whether a POST surely took effect although its answer can't be read."""
    return isinstance(error, ResponseError) and error.status_code in ACCEPTED


def backoff_seconds(interval_seconds: float, failures: int, longest_seconds: float = 60.0) -> float:
    """Return the time to the next look: the interval, doubled with each failure in a row, up to a bound."""
    longest = max(interval_seconds, longest_seconds)
    return min(interval_seconds * 2.0 ** min(failures, 30), longest)
