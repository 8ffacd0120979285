"""Make known what is started without a task's record: by a hook, a client or the command line, once per call.

Such a start is no more certain than its response, but no task adopts what it has started.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from techflow_provider.client.models import Execution
from techflow_provider.client.settings import Settings
from techflow_provider.client.text import get_logger
from techflow_provider.state.store import Store, StoreError
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord, Claim, payload_digest

T = TypeVar("T")

log: logging.Logger = get_logger(__name__)


class DirectStarts:
    """The intents and claims of starts that are made with each call.

    :param store: the state that processes share
    :param settings: those of the client that sends the requests
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings

    def announce(self, workflow_id: str, payload: Any) -> AttemptRecord:
        """Let the tasks know that an execution may appear, and return the intent."""
        seconds = self._settings.deadline_seconds + self._settings.response_seconds
        name = f"direct/{uuid4().hex}"
        intent = AttemptRecord(workflow_id, name, "", "", datetime.now(UTC), seconds, payload_digest(payload))
        self._try(partial(self._of(intent).update, lambda _: intent))
        return intent

    def claim(self, intent: AttemptRecord, execution: Execution) -> None:
        """Claim what was started."""
        claim = Claim(intent.submission_id, by_response=True, payload_digest=intent.payload_digest)
        self._try(partial(self._of(intent).claim, intent.workflow_id, execution.id, claim))
        self.withdraw(intent)

    def withdraw(self, intent: AttemptRecord, *, had_effect: bool = False) -> None:
        """Let the tasks know that nothing was started, or that nobody waits for the response any more."""
        lost = replace(intent, lost=True) if had_effect else None
        self._try(partial(self._of(intent).update, lambda present: present and lost))

    def _of(self, intent: AttemptRecord) -> AttemptStore:
        return AttemptStore(self._store, self._settings.site, intent.submission_id)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except StoreError as error:
            log.warning("A task may adopt what is started now, since the shared state can't be used: %s", error)
