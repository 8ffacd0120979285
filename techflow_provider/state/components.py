"""Which processes use a store, as they report it themselves: what `doctor` and the page judge by."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from techflow_provider.state import identity
from techflow_provider.state.sqlite import boot_id
from techflow_provider.state.store import Entry, Store, StoreError, Update, Write, read_only
from techflow_provider.state.wire import build

TTL_SECONDS = 24 * 3600.0
# How often a component is reported.
REPORT_SECONDS = 600.0
MAX_TEXT_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Component:
    """A process, or several of one kind that run below one kernel and in one home.

    :param program: what it was started as, such as `airflow triggerer`
    :param host: its host's name
    :param home: its `AIRFLOW_HOME`
    :param boot: what identifies its kernel and the boot of that
    :param version: of this package
    """

    program: str
    host: str
    home: str
    boot: str
    version: str

    @classmethod
    def present(cls, host: str, home: str, version: str) -> Component:
        """Return this process."""
        command = [argument for argument in sys.argv[1:2] if not argument.startswith("-")]
        path = Path(sys.argv[0])
        program = " ".join([path.parent.name if path.stem == "__main__" else path.stem, *command])
        return cls(program[:60], host, home, boot_id()[:8], version)

    @classmethod
    def read(cls, text: str) -> Component | None:
        """Read what `to_text` returns; None for anything else."""
        try:
            return build(cls, json.loads(text)) if len(text) <= MAX_TEXT_LENGTH else None
        except ValueError:
            return None

    def to_text(self) -> str:
        """Return it as JSON, in ASCII."""
        return json.dumps(asdict(self))


def report_now_and_then(store: Store, key: str, component: Component) -> None:
    """Record that a component uses a key's part of a store, unless this process has done so lately."""
    # Every store is hashable.
    _report(store, key, component, os.getpid(), time.monotonic() // REPORT_SECONDS)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=10_000)
def _report(store: Store, key: str, component: Component, *_: float) -> None:
    # Those that use the store next report what is wrong with it.
    with contextlib.suppress(StoreError):
        report(store, key, component)


def report(store: Store, key: str, component: Component) -> None:
    """Record that a component uses a key's part of a store, which gets its id if it is new."""
    # Of the pods on one node, the last one counts.
    name, write = f"{component.program} {component.boot} {component.home}", Write(component.to_text(), TTL_SECONDS)
    of_store: Update = (identity.NAMESPACE, identity.NAME, read_only)
    (entry, _), _ = store.update_many([of_store, (f"{key}/components", name, lambda *_: (write, None))])
    if entry is None:
        identity.store_entry(store)


def reported(store: Store, key: str) -> list[tuple[Component, Entry]]:
    """Return the components that used a key's part of a store in the last day, the latest first."""
    entries = sorted(store.entries(f"{key}/components"), key=lambda entry: entry.age_seconds)
    found = ((Component.read(entry.value), entry) for entry in entries)
    return [(component, entry) for component, entry in found if component is not None]
