"""Which waits share a poller: those of one event loop whose connections have the same API key and base URL."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4
from weakref import WeakKeyDictionary

from techflow_provider.client import AsyncClient, TechFlowError
from techflow_provider.client.models import StatusWords
from techflow_provider.client.text import get_logger
from techflow_provider.hooks.budget import open_budget, open_resources
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.state import open_state
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.polling.observers import as_techflow_error
from techflow_provider.polling.poller import Access, Poller
from techflow_provider.polling.searches import SharedHistory

log: logging.Logger = get_logger(__name__)

LookUp = Callable[[str], Awaitable[Access]]


async def look_up(conn_id: str) -> Access:
    """Look a connection up without blocking the event loop, and return what a poller needs of it."""
    connection = await TechFlowHook(conn_id).aget_techflow_connection()
    # The host and the process are there for people: hosts may have the same name.
    found = open_resources(connection, f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex}")
    return Access(found["settings"], found["budget"], found["reader"])


class PollerRegistry:
    """The pollers of one event loop, and the connections that were looked up for them.

    :param look_up: returns a connection by its id
    """

    def __init__(self, look_up: LookUp = look_up) -> None:
        self._look_up = look_up
        self._connections: dict[str, asyncio.Task[Access]] = {}
        self._pollers: dict[str, Poller] = {}

    async def poller(self, conn_id: str) -> tuple[Poller, StatusWords]:
        """Return the poller of a connection, and what the connection says that status words mean.

        The connection is looked up once until that poller has ended.

        :raises TechFlowError: the connection can't be looked up
        """
        task = self._connections.get(conn_id)
        if task is None:
            # In a context of its own, like the poller: the first trigger that asks is one of many.
            task = asyncio.get_running_loop().create_task(self._read(conn_id), context=contextvars.Context())
            self._connections[conn_id] = task
        # Shielded, since others await it when this caller is cancelled.
        access = await asyncio.shield(task)
        account = access.settings.account
        if account not in self._pollers:
            self._pollers[account] = Poller(access, partial(self._read, conn_id), partial(self._forget, account))
        return self._pollers[account], access.settings.status_words

    async def _read(self, conn_id: str) -> Access:
        try:
            access = await as_techflow_error(f"the connection {conn_id!r} could not be read", self._look_up(conn_id))
        except TechFlowError:
            self._connections.pop(conn_id, None)
            raise
        log.info("One poller of %s serves all waits of the connection %r", access.settings.base_url, conn_id)
        return access

    def _forget(self, account: str) -> None:
        """Drop a poller that has ended, with its connections: they may be changed before the next wait."""
        self._pollers.pop(account, None)
        for conn_id, task in list(self._connections.items()):
            if task.done() and task.result().settings.account == account:
                del self._connections[conn_id]


@dataclass(slots=True)
class Searches:
    """What the searches of one event loop and API key share.

    :param client: what they poll with
    :param history: what they read
    :param users: how many there are
    """

    client: AsyncClient
    history: SharedHistory
    users: int = 0


# The one piece of module-level state: what the waits and searches of each running event loop share.
_registries: WeakKeyDictionary[asyncio.AbstractEventLoop, PollerRegistry] = WeakKeyDictionary()
_searches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Searches]] = WeakKeyDictionary()


@contextlib.asynccontextmanager
async def shared_searches(connection: TechFlowConnection) -> AsyncIterator[Searches]:
    """Return what polls for the running loop's searches of a connection's API key; closed with the last of them."""
    shared, account = _searches.setdefault(asyncio.get_running_loop(), {}), connection.settings.account
    if account not in shared:
        client = AsyncClient(settings=connection.settings, budget=open_budget(connection))
        shared[account] = Searches(client, SharedHistory(open_state(connection).store, account))
    found = shared[account]
    found.users += 1
    try:
        yield found
    finally:
        found.users -= 1
        if not found.users:
            del shared[account]
            await found.client.aclose()


async def shared_poller(conn_id: str) -> tuple[Poller, StatusWords]:
    """Return the running loop's poller of a connection, and what the connection says that status words mean.

    Observe the poller before you await anything else.

    :param conn_id: connection of the type `techflow`
    :raises TechFlowError: the connection can't be looked up
    """
    return await _registries.setdefault(asyncio.get_running_loop(), PollerRegistry(look_up)).poller(conn_id)
