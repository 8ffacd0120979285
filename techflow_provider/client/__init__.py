"""TechFlow over HTTP, usable without Airflow: `Client`, `AsyncClient`, the models and the errors.

The names are loaded when they are first used: an operator needs the errors while a DAG is parsed, and not the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from techflow_provider.client.client import AsyncClient, Client
    from techflow_provider.client.errors import (
        AmbiguousExecutionError,
        AmbiguousWorkflowError,
        BadRequestError,
        BudgetTimeoutError,
        ExecutionFailedError,
        ExecutionNotFoundError,
        ExecutionTimeoutError,
        InvalidParameterError,
        NotFoundError,
        RateLimitError,
        RefusedError,
        ResponseError,
        ResponseSizeError,
        ServerError,
        SharedExecutionError,
        StateUnavailableError,
        SupersededError,
        TechFlowError,
        TransportError,
        UnauthorizedError,
        UnexpectedResponseError,
    )
    from techflow_provider.client.models import Execution, ExecutionState, Workflow
    from techflow_provider.client.retry import RetryPolicy
    from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings

_MODULES = {
    **dict.fromkeys(("AsyncClient", "Client"), "client"),
    **dict.fromkeys(("Execution", "ExecutionState", "Workflow"), "models"),
    "RetryPolicy": "retry",
    **dict.fromkeys(("DEFAULT_BASE_URL", "Settings"), "settings"),
}

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Client", "Execution", "ExecutionState", "RetryPolicy", "Settings"]
__all__ += ["Workflow"]
__all__ += ["AmbiguousExecutionError", "AmbiguousWorkflowError", "BadRequestError", "BudgetTimeoutError"]
__all__ += ["ExecutionFailedError", "ExecutionNotFoundError", "ExecutionTimeoutError", "InvalidParameterError"]
__all__ += ["NotFoundError", "RateLimitError", "RefusedError", "ResponseError", "ResponseSizeError", "ServerError"]
__all__ += ["StateUnavailableError", "SupersededError", "TechFlowError", "TransportError", "UnauthorizedError"]
__all__ += ["SharedExecutionError", "UnexpectedResponseError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
