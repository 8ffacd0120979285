"""What an event trigger does: observe the shared poller, write down what is new, and tell it, each event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

from techflow_provider.client.parsing import Json
from techflow_provider.hooks.budget import open_lookouts
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.polling.cursor_store import RENEW_SECONDS, CursorStore
from techflow_provider.polling.event_buffer import EventBuffer
from techflow_provider.polling.event_cursor import EventEmitter
from techflow_provider.polling.events import EventFilter
from techflow_provider.polling.observers import as_techflow_error
from techflow_provider.polling.registry import shared_poller

# A triggerer hands events over about once a second; so long after it was told, one is in Airflow's database.
CONFIRM_SECONDS = 5.0
# A trigger that has not written for so long, with events untold, is gone.
TAKEOVER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often a watcher looks and tells.

    :param poll_seconds: time between two looks while no webhook arrives
    :param spacing_seconds: time between two events
    """

    poll_seconds: float
    spacing_seconds: float


async def watch(conn_id: str, subject: EventFilter, name: str, rhythm: Rhythm) -> AsyncIterator[Json]:
    """Yield the payload of each event, for as long as looking makes sense.

    :param conn_id: connection of the type `techflow`
    :param subject: the events that are wanted
    :param name: the watcher's name, the same in every process
    :raises TechFlowError: no look will succeed any more
    """
    loop = asyncio.get_running_loop()
    telling = EventEmitter(uuid4().hex, rhythm.spacing_seconds, CONFIRM_SECONDS)
    look_up = TechFlowHook(conn_id).aget_techflow_connection()
    connection = await as_techflow_error(f"the connection {conn_id!r} could not be read", look_up)
    journal = CursorStore(open_lookouts(connection), name)
    await journal.open()
    mailbox = EventBuffer(subject, rhythm.poll_seconds, journal, telling.owner)
    poller = await shared_poller(conn_id)
    with poller.observed_by(mailbox):
        while True:
            await _write_down(mailbox, telling)
            pending = telling.next(journal.cursor, loop.time())
            if pending is not None:
                yield pending.payload
                continue
            await mailbox.changes_within(_seconds_until_due(journal, telling))


async def _write_down(mailbox: EventBuffer, telling: EventEmitter) -> None:
    journal = mailbox.journal
    await mailbox.empty_into_journal()
    arrived = telling.arrived(asyncio.get_running_loop().time())
    await journal.change(lambda lookout: lookout.without(arrived))
    telling.forget(arrived)
    if journal.cursor.has_foreign(telling.owner) and journal.left_alone_seconds >= TAKEOVER_SECONDS:
        await journal.take_over(telling.owner)


def _seconds_until_due(journal: CursorStore, telling: EventEmitter) -> float:
    due = telling.due(journal.cursor) - asyncio.get_running_loop().time()
    if journal.cursor.has_foreign(telling.owner):
        due = min(due, TAKEOVER_SECONDS - journal.left_alone_seconds)
    return max(0.0, min(due, RENEW_SECONDS))
