"""The command that shows how the rate budget of a connection's API key stands; it sends nothing."""

from __future__ import annotations

from argparse import Namespace

from techflow_provider.client.parsing import Json
from techflow_provider.commands.report import Report, facts
from techflow_provider.commands.session import look_up
from techflow_provider.hooks.budget import open_budget
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.snapshot import Snapshot


def show_budget(args: Namespace) -> Report:
    """Show the budget."""
    snapshot = open_budget(look_up(args.conn_id)).snapshot()
    return Report(_value(snapshot), facts(_facts(snapshot)))


def _value(snapshot: Snapshot) -> dict[str, Json]:
    return {
        "requests_per_minute": snapshot.requests_per_minute,
        "burst": snapshot.burst,
        "used_last_minute": {each.value: count for each, count in snapshot.used.items()},
        "free_now": snapshot.free,
        "next_slot_seconds": {each.value: round(wait, 3) for each, wait in snapshot.next_slot_seconds.items()},
        "cooldown_seconds": round(snapshot.cooldown_seconds, 3),
        "waiting": snapshot.waiting,
        "store": snapshot.store,
        "shared": snapshot.shared,
    }


def _facts(snapshot: Snapshot) -> dict[str, object]:
    used, slots = snapshot.used, snapshot.next_slot_seconds
    total = sum(used.values())
    pause = f"{snapshot.cooldown_seconds:.0f} s are left of it" if snapshot.cooldown_seconds else "none"
    commands, polls = RequestClass.COMMAND, RequestClass.POLL
    return {
        "used in the last minute": f"{total} of {snapshot.requests_per_minute}: "
        f"commands {used.get(commands, 0)}, polls {used.get(polls, 0)}",
        "free now": f"{snapshot.free} of a burst of {snapshot.burst}",
        "next slot": f"commands {_when(slots[commands])}, polls {_when(slots[polls])}",
        "waiting": snapshot.waiting,
        "pause after a 429": pause,
        "kept in": snapshot.store,
        "shared": "yes" if snapshot.shared else "no: its store can't be used, and a part of the limit goes on",
    }


def _when(seconds: float) -> str:
    return f"in {seconds:.1f} s" if seconds > 0 else "now"
