"""A local TechFlow for tests and for trying DAGs without an account: `Sandbox`, and the `techflow-sandbox` command.

It is based on the vendor's reference alone and imports nothing else of this package but its version, so that it can
disagree with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from techflow_provider.sandbox.faults import Fault, Faults
    from techflow_provider.sandbox.sandbox import Record, Sandbox
    from techflow_provider.sandbox.settings import Clock, ManualClock, SettingError
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: every pytest run imports this package for its fixtures."""
    if name in __all__:
        modules = (importlib.import_module(f"{__name__}.{each}") for each in ("sandbox", "settings", "state"))
        return next(vars(module)[name] for module in modules if name in vars(module))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
