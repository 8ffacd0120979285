"""What a store keeps of one budget: the GCRA's state and recent grants as one JSON value, and the changes to it.

The changes are classes so that a store can recognise them: Redis runs them as a script, where the value is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any, ClassVar

from techflow_provider.state.gcra import (
    GcraState,
    Policy,
    RequestClass,
    Reservation,
    ReservationRequest,
    cool_down,
    observe,
    release,
    reserve,
    settle,
)
from techflow_provider.state.learning import MINUTE_SECONDS, Cause, Learned, Quota, Rejection
from techflow_provider.state.store import Entry, Write
from techflow_provider.state.wire import build

# Grants are kept for as long as the chart of them goes back, and each slice of it lasts so long.
HISTORY_SECONDS = 600
SLICE_SECONDS = 10
# A budget that nobody used for so long begins anew, exhausted, which costs the next request one interval.
BUDGET_TTL_SECONDS = 7 * 24 * 3600.0
FIELDS = tuple(name for name in GcraState.__dataclass_fields__ if name not in ("learned", "released"))
LEARNED_FIELDS = tuple(Learned.__dataclass_fields__)
_fields, _items = attrgetter(*FIELDS), itemgetter(*FIELDS)
_learned_fields, _learned_items = attrgetter(*LEARNED_FIELDS), itemgetter(*LEARNED_FIELDS)

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
        learned = dict(zip(LEARNED_FIELDS, _learned_fields(self.gcra.learned), strict=True))
        value: dict[str, object] = dict(zip(FIELDS, _fields(self.gcra), strict=True))
        value |= {"learned": learned, "released": self.gcra.released, "grants": self.grants}
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    def read(cls, text: str) -> BudgetState | None:
        """Read what a store keeps; None where it isn't a budget's state of numbers that it can have."""
        try:
            value = json.loads(text)
            *kept, cause = _learned_items(value["learned"])
            numbers, released, grants = _numbers([*kept, *_items(value)]), _numbers(value["released"]), value["grants"]
            learned = Learned(*numbers[: len(kept)], cause=Cause(cause))  # type: ignore[misc,arg-type]  # as many
            gcra = GcraState(*numbers[len(kept) :], learned=learned, released=tuple(released))  # type: ignore[misc,arg-type]  # as many
            return cls(gcra, grants) if gcra.is_plausible() and isinstance(grants, str) else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def to_write(self) -> Write:
        """Return how a store keeps it."""
        return Write(self.to_text(), BUDGET_TTL_SECONDS)

    @property
    def counts(self) -> list[GrantCount]:
        """The counts of requests sent; none where they can't be read."""
        counts: list[GrantCount] = []
        try:
            for each in self.grants.split():
                at, commands, polls = map(int, each.split(":"))
                counts.append((at, commands, polls))
        except ValueError:
            return []
        return counts

    def sent(self, now: float, seconds: float) -> int:
        """Return how many requests were sent in the last seconds."""
        return sum(each[1] + each[2] for each in self.counts if -1 <= now - each[0] < seconds)

    def with_grant(self, at: float, request_class: RequestClass) -> BudgetState:
        """Return the state with one more request sent."""
        second, is_command = math.floor(at + 0.5), request_class is RequestClass.COMMAND
        grant = (second, int(is_command), int(not is_command))
        merged = _compact([*self.counts, grant], second)
        return BudgetState(self.gcra, " ".join([":".join(map(str, each)) for each in merged]))


def _numbers(values: Sequence[Any]) -> list[float]:
    """Return numbers as they are kept.

    :raises ValueError: one isn't a finite number
    """
    if not (set(map(type, values)) <= {int, float} and all(map(math.isfinite, values))):
        raise ValueError("expected finite numbers")
    return [*map(float, values)]


def _compact(grants: list[GrantCount], now: int) -> list[GrantCount]:
    """Merge the slices that lie entirely before the last minute, and leave out what is too old or in the future."""
    merged: list[GrantCount] = []
    for at, commands, polls in grants:
        if not now - HISTORY_SECONDS <= at <= now:
            continue
        slice_end = at - at % SLICE_SECONDS + SLICE_SECONDS
        grant = (slice_end - SLICE_SECONDS // 2 if slice_end <= now - MINUTE_SECONDS else at, commands, polls)
        if merged and merged[-1][0] == grant[0]:
            merged[-1] = (grant[0], merged[-1][1] + commands, merged[-1][2] + polls)
        else:
            merged.append(grant)
    return merged


def _begin(entry: Entry | None, policy: Policy, now: float) -> tuple[BudgetState, bool]:
    """Return the present state, and whether one that can't be read was discarded for it."""
    found = None if entry is None else BudgetState.read(entry.value)
    return found or BudgetState(GcraState.empty(policy, now)), entry is not None and found is None


@dataclass(frozen=True, slots=True)
class Reserve:
    """Take a slot; the result is the reservation.

    :param policy: the budget's parameters
    :param request: the caller's request
    """

    policy: Policy
    request: ReservationRequest
    result: ClassVar[type] = Reservation

    def __call__(self, entry: Entry | None, now: float) -> tuple[Write, Reservation]:
        """Return what to write and the result."""
        state, discarded = _begin(entry, self.policy, now)
        gcra, reservation = reserve(state.gcra, self.policy, self.request, now)
        state, usage = BudgetState(gcra, state.grants), None
        if reservation.may_send and self.request.request_class is not RequestClass.ADMISSION:
            state = state.with_grant(reservation.at, self.request.request_class)
            if gcra.learned.stated:
                usage = gcra.usage(self.policy, state.sent(reservation.at, MINUTE_SECONDS))
        return state.to_write(), replace(reservation, usage=usage, discarded=discarded)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What a change made of what is known about the server's limiter.

    :param changed: whether it was something else before
    :param burst: the burst that is tried
    :param share: the part of the limit that is used
    :param cause: why it is less than configured
    :param cool_down_seconds: what is left of the cool-down
    :param discarded: whether a state that can't be read was discarded
    """

    changed: bool
    burst: float
    share: float
    cause: Cause
    cool_down_seconds: float
    discarded: bool


@dataclass(frozen=True, slots=True)
class Adjust:
    """Heed what came of a slot; the result is an adjustment.

    :param policy: the budget's parameters
    :param rejection: the 429 that a request met
    :param quota: what a response states
    :param unused: the reservation of a slot that is given back
    :param accepted: the epoch of a probe that the server has accepted
    """

    policy: Policy
    rejection: Rejection | None = None
    quota: Quota | None = None
    unused: Reservation | None = None
    accepted: float | None = None
    result: ClassVar[type] = Adjustment

    def __call__(self, entry: Entry | None, now: float) -> tuple[Write, Adjustment]:
        """Return what to write and the result."""
        state, discarded = _begin(entry, self.policy, now)
        gcra = state.gcra
        if self.rejection is not None:
            gcra = cool_down(gcra, self.policy, self.rejection, partial(state.sent, now), now)
        if self.quota is not None:
            gcra = observe(gcra, self.policy, self.quota, state.sent(now, MINUTE_SECONDS), now)
        if self.unused is not None:
            gcra = release(gcra, self.policy, self.unused)
        if self.accepted is not None:
            gcra = settle(gcra, self.accepted)
        old, new = state.gcra.learned, gcra.learned
        changed = (old.burst, old.plateau, old.cause) != (new.burst, new.plateau, new.cause)
        cool_down_seconds = max(0.0, gcra.cool_until - gcra.updated_at)
        result = Adjustment(changed, new.burst, gcra.share, new.cause, cool_down_seconds, discarded)
        return BudgetState(gcra, state.grants).to_write(), result


BudgetChange = Reserve | Adjust
CHANGES: Mapping[str, type[BudgetChange]] = {"Reserve": Reserve, "Adjust": Adjust}


def change_to_dict(change: BudgetChange) -> dict[str, object]:
    """Return a change as a JSON object, for a store that runs it where the value is; numbers may be infinite."""
    return {"change": type(change).__name__, **asdict(change)}


def read_change(value: Mapping[str, Any]) -> BudgetChange:
    """Read a change that another process asks for.

    :raises ValueError: it isn't one
    """
    kind = CHANGES.get(str(value.get("change")))
    if kind is None:
        raise ValueError(f"change: expected one of {', '.join(CHANGES)}")
    return build(kind, value)
