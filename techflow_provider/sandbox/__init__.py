"""A local TechFlow for tests and for trying DAGs without an account: `Sandbox`, and the `techflow-sandbox` command.

It stands on the vendor's reference alone and imports nothing else of this package, so that it can disagree with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from techflow_provider.sandbox.clock import Clock, ManualClock
    from techflow_provider.sandbox.faults import Fault, Faults
    from techflow_provider.sandbox.record import Record
    from techflow_provider.sandbox.sandbox import Sandbox
    from techflow_provider.sandbox.settings import SettingError
    from techflow_provider.sandbox.state import Event, Execution, Plan
    from techflow_provider.sandbox.webhooks import WebhookDelivery, Webhooks

__all__ = [
    "Clock",
    "Event",
    "Execution",
    "Fault",
    "Faults",
    "ManualClock",
    "Plan",
    "Record",
    "Sandbox",
    "SettingError",
    "WebhookDelivery",
    "Webhooks",
]

HOMES = {
    "Clock": "clock",
    "Event": "state",
    "Execution": "state",
    "Fault": "faults",
    "Faults": "faults",
    "ManualClock": "clock",
    "Plan": "state",
    "Record": "record",
    "Sandbox": "sandbox",
    "SettingError": "settings",
    "WebhookDelivery": "webhooks",
    "Webhooks": "webhooks",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: every pytest run imports this package for its fixtures."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)
