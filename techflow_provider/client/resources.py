"""`client.workflows` and `client.executions`: the operations as methods, at once or awaitable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import update_wrapper
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from techflow_provider.client import operations
from techflow_provider.client.exchange import Conversation, Terms

P = ParamSpec("P")
T = TypeVar("T")

Operation = Callable[Concatenate[Terms, P], Conversation[T]]


class Performer(Protocol):
    """What carries out a conversation at once."""

    terms: Terms

    def converse(self, conversation: Conversation[T]) -> T:
        """Perform the steps of a conversation and return what it comes to."""


class AsyncPerformer(Protocol):
    """What carries out a conversation in an event loop."""

    terms: Terms

    def converse(self, conversation: Conversation[T]) -> Awaitable[T]:
        """Perform the steps of a conversation and return what it comes to."""


class Resource:
    """Something that operations are about.

    :param client: carries them out
    """

    def __init__(self, client: Performer) -> None:
        self._client = client


class AsyncResource:
    """Something that awaitable operations are about.

    :param client: carries them out
    """

    def __init__(self, client: AsyncPerformer) -> None:
        self._client = client


def _method(operation: Operation[P, T]) -> Callable[Concatenate[Resource, P], T]:
    def perform(self: Resource, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._client.converse(operation(self._client.terms, *args, **kwargs))

    update_wrapper(perform, operation)
    return perform


def _awaitable_method(operation: Operation[P, T]) -> Callable[Concatenate[AsyncResource, P], Awaitable[T]]:
    def perform(self: AsyncResource, /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self._client.converse(operation(self._client.terms, *args, **kwargs))

    update_wrapper(perform, operation)
    return perform


class Workflows(Resource):
    """Workflows. Every method raises `TechFlowError` in one of its kinds."""

    list = _method(operations.list_workflows)
    get = _method(operations.get_workflow)
    create = _method(operations.create_workflow)
    update = _method(operations.update_workflow)
    delete = _method(operations.delete_workflow)
    execute = _method(operations.start_execution)


class Executions(Resource):
    """The execution history. Every method raises `TechFlowError` in one of its kinds."""

    list = _method(operations.list_executions)
    get = _method(operations.get_execution)
    wait = _method(operations.wait_for_execution)
    look = _method(operations.look)


class AsyncWorkflows(AsyncResource):
    """Like `Workflows`, with awaitable methods."""

    list = _awaitable_method(operations.list_workflows)
    get = _awaitable_method(operations.get_workflow)
    create = _awaitable_method(operations.create_workflow)
    update = _awaitable_method(operations.update_workflow)
    delete = _awaitable_method(operations.delete_workflow)
    execute = _awaitable_method(operations.start_execution)


class AsyncExecutions(AsyncResource):
    """Like `Executions`, with awaitable methods."""

    list = _awaitable_method(operations.list_executions)
    get = _awaitable_method(operations.get_execution)
    wait = _awaitable_method(operations.wait_for_execution)
    look = _awaitable_method(operations.look)
