"""What a store keeps of one budget: the GCRA's state and recent grants as one JSON value, and the changes to it.

The changes are classes so that a store can recognise them: Redis runs them as a script, where the value is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from techflow_provider.state.gcra import (
    MINUTE_SECONDS,
    GcraState,
    Policy,
    RequestClass,
    Reservation,
    ReservationRequest,
    cool_down,
    reserve,
    settle,
)
from techflow_provider.state.store import Entry, Write
from techflow_provider.state.wire import build

# Grants are kept for as long as the chart of them goes back, and each slice of it lasts so long.
HISTORY_SECONDS = 600
SLICE_SECONDS = 10
# A budget that nobody used for so long begins anew, exhausted, which costs the next request one interval.
BUDGET_TTL_SECONDS = 7 * 24 * 3600.0
FIELDS = tuple(GcraState.__dataclass_fields__)

# A second, and how many commands and polls were sent in it; older ones are merged into slices around their middle.
GrantCount = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class BudgetState:
    """What a store knows of one key's budget.

    :param gcra: the state of the rate limit
    :param grants: the counts of requests sent in the last ten minutes, by time, as "second:commands:polls second:…";
        a text, since it is parsed once a second at most, but read and written with every change
    """

    gcra: GcraState
    grants: str = ""

    def to_text(self) -> str:
        """Return the text that a store keeps."""
        fields: dict[str, object] = {name: getattr(self.gcra, name) for name in FIELDS}
        return json.dumps({**fields, "grants": self.grants}, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> BudgetState | None:
        """Read what a store keeps; None where it isn't a budget's state of finite numbers."""
        try:
            value = json.loads(text)
            gcra, grants = [value[name] for name in FIELDS], value["grants"]
            finite = all(type(each) in (int, float) and math.isfinite(each) for each in gcra)
            return cls(GcraState(*map(float, gcra)), grants) if finite and isinstance(grants, str) else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    @property
    def counts(self) -> list[GrantCount]:
        """The counts of requests sent; none where they can't be read."""
        try:
            parts = (each.split(":") for each in self.grants.split())
            return [(int(at), int(commands), int(polls)) for at, commands, polls in parts]
        except ValueError:
            return []

    def with_grant(self, at: float, request_class: RequestClass) -> BudgetState:
        """Return the state with one more request sent."""
        second, is_command = math.floor(at + 0.5), request_class is RequestClass.COMMAND
        grant = (second, int(is_command), int(not is_command))
        earlier, space, last = self.grants.rpartition(" ")
        if last.startswith(f"{second}:"):
            (present,) = BudgetState(self.gcra, last).counts or [(second, 0, 0)]
            return BudgetState(self.gcra, earlier + space + ":".join(map(str, _sum(present, grant))))
        merged = _compact([*self.counts, grant], second)
        return BudgetState(self.gcra, " ".join(":".join(map(str, each)) for each in merged))


def _compact(grants: list[GrantCount], now: int) -> list[GrantCount]:
    """Merge the slices that lie entirely before the last minute, and leave out what is too old or in the future."""
    merged: list[GrantCount] = []
    for at, commands, polls in grants:
        if not now - HISTORY_SECONDS <= at <= now:
            continue
        slice_end = at - at % SLICE_SECONDS + SLICE_SECONDS
        grant = (slice_end - SLICE_SECONDS // 2 if slice_end <= now - MINUTE_SECONDS else at, commands, polls)
        if merged and merged[-1][0] == grant[0]:
            merged[-1] = _sum(merged[-1], grant)
        else:
            merged.append(grant)
    return merged


def _sum(first: GrantCount, second: GrantCount) -> GrantCount:
    return first[0], first[1] + second[1], first[2] + second[2]


def _begin(entry: Entry | None, policy: Policy, now: float) -> tuple[BudgetState, bool]:
    """Return the present state, and whether one that can't be read was discarded for it."""
    found = None if entry is None else BudgetState.read(entry.value)
    return found or BudgetState(GcraState.empty(policy, now)), entry is not None and found is None


@dataclass(frozen=True, slots=True)
class Reserve:
    """Take a slot; the result is the reservation, and whether a state that can't be read was discarded.

    :param policy: the budget's parameters
    :param request: the caller's request
    """

    policy: Policy
    request: ReservationRequest

    def __call__(self, entry: Entry | None, now: float) -> tuple[Write, tuple[Reservation, bool]]:
        """Return what to write and the result."""
        state, discarded = _begin(entry, self.policy, now)
        gcra, reservation = reserve(state.gcra, self.policy, self.request, now)
        state = BudgetState(gcra, state.grants)
        if reservation.may_send and self.request.request_class is not RequestClass.ADMISSION:
            state = state.with_grant(reservation.at, self.request.request_class)
        return Write(state.to_text(), BUDGET_TTL_SECONDS), (reservation, discarded)


@dataclass(frozen=True, slots=True)
class CoolDown:
    """Begin or extend a cool-down; the result is its remaining seconds, and whether a state was discarded.

    :param policy: the budget's parameters
    :param seconds: what the server asked for
    :param epoch: the epoch of the rejected request's slot
    """

    policy: Policy
    seconds: float | None
    epoch: float

    def __call__(self, entry: Entry | None, now: float) -> tuple[Write, tuple[float, bool]]:
        """Return what to write and the result."""
        state, discarded = _begin(entry, self.policy, now)
        gcra = cool_down(state.gcra, self.policy, self.seconds, self.epoch, now)
        write = Write(BudgetState(gcra, state.grants).to_text(), BUDGET_TTL_SECONDS)
        return write, (gcra.cool_until - gcra.updated_at, discarded)


@dataclass(frozen=True, slots=True)
class Settle:
    """End the probing, because the server accepted the probe.

    :param epoch: the epoch of the probe's slot
    """

    epoch: float

    def __call__(self, entry: Entry | None, _: float) -> tuple[Write | None, None]:
        """Return what to write."""
        state = None if entry is None else BudgetState.read(entry.value)
        if state is None or state.gcra.epoch != self.epoch:
            return None, None
        settled = BudgetState(settle(state.gcra, self.epoch), state.grants)
        return Write(settled.to_text(), BUDGET_TTL_SECONDS), None


BudgetChange = Reserve | CoolDown | Settle
# Each change with the type of its result, beside which it says whether a state was discarded; None: it has no result.
CHANGES: Mapping[str, tuple[type[BudgetChange], type | None]] = {
    "Reserve": (Reserve, Reservation),
    "CoolDown": (CoolDown, float),
    "Settle": (Settle, None),
}


def change_to_dict(change: BudgetChange) -> dict[str, object]:
    """Return a change as a JSON object, for a store that runs it where the value is; numbers may be infinite."""
    return {"change": type(change).__name__, **asdict(change)}


def read_change(value: Mapping[str, Any]) -> BudgetChange:
    """Read a change that another process asks for.

    :raises ValueError: it isn't one
    """
    kind, _ = CHANGES.get(str(value.get("change")), (None, None))
    if kind is None:
        raise ValueError(f"change: expected one of {', '.join(CHANGES)}")
    return build(kind, value)


def result_to_dict(result: object) -> dict[str, object]:
    """Return the result of a change as a JSON object."""
    if not isinstance(result, tuple):
        return {}
    value, discarded = result
    return {"result": asdict(value) if is_dataclass(value) else value, "discarded": discarded}  # type: ignore[arg-type]  # an instance


def read_result(change: BudgetChange, value: Mapping[str, Any]) -> object:
    """Read the result of a change that was run elsewhere.

    :raises ValueError: it isn't one
    """
    _, kind = CHANGES[type(change).__name__]
    return None if kind is None else (build(kind, value.get("result")), build(bool, value.get("discarded")))
