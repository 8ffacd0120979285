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

# The first that has a name is where it comes from.
_MODULES = ("errors", "models", "settings", "retry", "client")

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Client", "Execution", "ExecutionState", "RetryPolicy", "Settings"]
__all__ += ["Workflow"]
__all__ += ["AmbiguousExecutionError", "AmbiguousWorkflowError", "BadRequestError", "BudgetTimeoutError"]
__all__ += ["ExecutionFailedError", "ExecutionNotFoundError", "ExecutionTimeoutError", "InvalidParameterError"]
__all__ += ["NotFoundError", "RateLimitError", "RefusedError", "ResponseError", "ResponseSizeError", "ServerError"]
__all__ += ["StateUnavailableError", "SupersededError", "TechFlowError", "TransportError", "UnauthorizedError"]
__all__ += ["SharedExecutionError", "UnexpectedResponseError"]


def __getattr__(name: str) -> Any:
    modules = (import_module(f"{__name__}.{module}") for module in _MODULES if name in __all__)
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
