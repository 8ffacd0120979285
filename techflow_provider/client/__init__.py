"""TechFlow over HTTP, usable without Airflow: `Client`, `AsyncClient`, the models and the errors.

All but the errors, which operators need while a DAG is parsed, are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from techflow_provider.client import errors
from techflow_provider.client.errors import *  # noqa: F403  # what its __all__ lists

if TYPE_CHECKING:
    from techflow_provider.client.client import AsyncClient, Client
    from techflow_provider.client.models import Execution, ExecutionState, Workflow
    from techflow_provider.client.retry import RetryPolicy
    from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings

# Where a name is looked for, in this order.
_MODULES = ("models", "settings", "retry", "client")

__all__ = ["DEFAULT_BASE_URL", "AsyncClient", "Client", "Execution", "ExecutionState", "RetryPolicy", "Settings"]
__all__ += ["Workflow"]
__all__ += errors.__all__


def __getattr__(name: str) -> Any:
    modules = (import_module(f"{__name__}.{module}") for module in _MODULES if name in __all__)
    for module in modules:
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
