"""TechFlow over HTTP, usable without Airflow: `Client`, `AsyncClient`, the models and the errors."""

from __future__ import annotations

from techflow_provider.client.client import AsyncClient, Client
from techflow_provider.client.errors import (
    AmbiguousExecutionError,
    BadRequestError,
    BudgetTimeoutError,
    ExecutionFailedError,
    ExecutionNotFoundError,
    ExecutionTimeoutError,
    InvalidParameterError,
    NotFoundError,
    RateLimitError,
    ResponseError,
    ServerError,
    TechFlowError,
    TransportError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from techflow_provider.client.models import Execution, ExecutionState, Workflow
from techflow_provider.client.retry import RetryPolicy
from techflow_provider.client.settings import DEFAULT_BASE_URL, Settings

__all__ = [
    "DEFAULT_BASE_URL",
    "AmbiguousExecutionError",
    "AsyncClient",
    "BadRequestError",
    "BudgetTimeoutError",
    "Client",
    "Execution",
    "ExecutionFailedError",
    "ExecutionNotFoundError",
    "ExecutionState",
    "ExecutionTimeoutError",
    "InvalidParameterError",
    "NotFoundError",
    "RateLimitError",
    "ResponseError",
    "RetryPolicy",
    "ServerError",
    "Settings",
    "TechFlowError",
    "TransportError",
    "UnauthorizedError",
    "UnexpectedResponseError",
    "Workflow",
]
