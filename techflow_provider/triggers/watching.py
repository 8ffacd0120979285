"""What an event trigger does: observe the shared poller, write down what is new, and tell it, each event once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

from techflow_provider.client.news import Subject
from techflow_provider.client.shapes import Json
from techflow_provider.hooks.budget import open_lookouts
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.triggers.journal import RENEW_SECONDS, Journal
from techflow_provider.triggers.lookout import Telling
from techflow_provider.triggers.mailbox import Mailbox
from techflow_provider.triggers.observers import in_words
from techflow_provider.triggers.sharing import shared_poller

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


async def watch(conn_id: str, subject: Subject, name: str, rhythm: Rhythm) -> AsyncIterator[Json]:
    """Yield the payload of each event, for as long as looking makes sense.

    :param conn_id: connection of the type `techflow`
    :param subject: the events that are wanted
    :param name: the watcher's name, the same in every process
    :raises TechFlowError: no look will succeed any more
    """
    loop = asyncio.get_running_loop()
    telling = Telling(uuid4().hex, rhythm.spacing_seconds, CONFIRM_SECONDS)
    look_up = TechFlowHook(conn_id).aget_techflow_connection()
    connection = await in_words(f"the connection {conn_id!r} could not be read", look_up)
    journal = Journal(open_lookouts(connection), name)
    await journal.open()
    mailbox = Mailbox(subject, rhythm.poll_seconds, journal, telling.owner)
    poller = await shared_poller(conn_id)
    with poller.observed_by(mailbox):
        while True:
            await _write_down(mailbox, telling)
            pending = telling.next(journal.lookout, loop.time())
            if pending is not None:
                yield pending.payload
                continue
            await mailbox.changes_within(_seconds_until_due(journal, telling))


async def _write_down(mailbox: Mailbox, telling: Telling) -> None:
    journal = mailbox.journal
    await mailbox.empty_into_journal()
    arrived = telling.arrived(asyncio.get_running_loop().time())
    await journal.change(lambda lookout: lookout.without(arrived))
    telling.forget(arrived)
    if journal.lookout.has_strangers(telling.owner) and journal.left_alone_seconds >= TAKEOVER_SECONDS:
        await journal.take_over(telling.owner)


def _seconds_until_due(journal: Journal, telling: Telling) -> float:
    due = telling.due(journal.lookout) - asyncio.get_running_loop().time()
    if journal.lookout.has_strangers(telling.owner):
        due = min(due, TAKEOVER_SECONDS - journal.left_alone_seconds)
    return max(0.0, min(due, RENEW_SECONDS))
