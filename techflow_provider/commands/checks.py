"""The checks of `doctor` and the inferences of `doctor --learn`, as pure functions."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from statistics import median

import httpx

from techflow_provider import __version__
from techflow_provider.client.models import EXECUTION_NAMES, Execution, StatusWords
from techflow_provider.client.parsing import DecodeError, Json, counted, get_first, items, json_of, quote, shorten
from techflow_provider.client.settings import Settings
from techflow_provider.state.components import Component
from techflow_provider.state.snapshot import Snapshot

# Network delay and a Date without fractions explain any smaller difference.
CLOCK_SKEW_WARNING_SECONDS = 30.0
# How many hosts and components a finding lists.
MAX_LISTED = 5
OLDEST_AIRFLOW, NEXT_AIRFLOW = (2, 11), (4,)
UNCLEAR_REMEDY = "Run a task that uses the connection, and doctor where Airflow's other components run."
FILE_REMEDY = "Leave [techflow] state_url empty, or set it to a store that all hosts can reach."

# Query parameters that the history may honour, each with a value that leaves nothing or little of it.
FILTERS = {"workflow_id": "no-such-workflow", "status": "no-such-status", "since": "2999-01-01T00:00:00Z", "limit": "1"}
# What is worth sending with a poll. A filter for a status would hide the others.
QUERIES = {"limit": "limit=200", "workflow_id": "workflow_id={workflow_id}", "since": "since={since}"}


class Severity(StrEnum):
    """The result of a check."""

    OK = "ok"
    UNCLEAR = "unclear"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    :param check: the check's name
    :param severity: the result
    :param message: the reason
    :param remedy: what to do; empty when nothing needs doing
    """

    check: str
    severity: Severity
    message: str
    remedy: str = ""


def versions(airflow: str) -> Finding:
    """Check the versions."""
    compat = version("apache-airflow-providers-common-compat")
    others = f"common-compat {compat}, httpx {httpx.__version__}, python {platform.python_version()}"
    message = f"airflow-provider-techflow {__version__}, airflow {airflow}, {others}"
    release = tuple(int(part) for part in airflow.split(".")[:2] if part.isdigit())
    if OLDEST_AIRFLOW <= release < NEXT_AIRFLOW:
        return Finding("versions", Severity.OK, message)
    return Finding("versions", Severity.WARNING, message, "This package is tested with Airflow 2.11 and 3.0 to 3.3.")


def clock_skew(server: datetime | None, local: datetime) -> Finding:
    """Compare this host's clock with TechFlow's.

    :param server: the response's Date, if it has one
    :param local: this host's clock at the same moment
    """
    if server is None:
        return Finding("clock", Severity.OK, "the response has no Date to compare with")
    seconds = (local - server).total_seconds()
    message = f"this host is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} TechFlow"
    if abs(seconds) <= CLOCK_SKEW_WARNING_SECONDS:
        return Finding("clock", Severity.OK, message)
    remedy = "Synchronise the clock (NTP): started_after and signed webhooks compare the times of both hosts."
    return Finding("clock", Severity.WARNING, message, remedy)


def settings(problems: Sequence[str]) -> Finding:
    """Report the settings that can't be read."""
    if not problems:
        return Finding("settings", Severity.OK, "all settings in [techflow] can be read")
    remedy = "Correct it in airflow.cfg or in the environment: until then, tasks that use it fail."
    return Finding("settings", Severity.PROBLEM, "; ".join(problems), remedy)


def written_times(seconds: Sequence[float]) -> Finding:
    """Report how the times that TechFlow writes relate to its clock.

    :param seconds: how far each of the last starts was written ahead of the response's Date
    """
    if not seconds:
        message = "no start is recorded that shows how the times which TechFlow writes relate to its Date"
        return Finding("times", Severity.UNCLEAR, message, "Run a task that starts an execution.")
    ahead = median(seconds)
    relation = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} its Date"
    message = f"the times that TechFlow writes are {relation}, by the last {counted(len(seconds), 'start')}"
    if abs(ahead) <= CLOCK_SKEW_WARNING_SECONDS:
        return Finding("times", Severity.OK, message)
    return Finding("times", Severity.WARNING, message, "Allow for it in started_after. Starts do so by themselves.")


def shared_store(location: str, here: Component, components: Sequence[Component]) -> Finding:
    """Judge whether a store is shared by the components that used it in the last day.

    :param here: this process
    """
    users = sorted({f"{each.program} on {each.host}" for each in components if each != here})
    if users:
        return Finding("shared", Severity.OK, f"{location} is used by {_listed(users)}")
    return Finding("shared", Severity.UNCLEAR, f"no other process has used {location} in the last day", UNCLEAR_REMEDY)


def shared_file(here: str, hosts: frozenset[str] | None) -> Finding:
    """Judge whether a file is shared by the hosts on which Airflow's jobs and tasks ran lately.

    :param hosts: None where Airflow's database can't be read
    """
    if hosts is None:
        message = "the state is a file, and Airflow's database, which names its hosts, can't be read"
        return Finding("shared", Severity.UNCLEAR, message, UNCLEAR_REMEDY)
    if not hosts:
        message = "the state is a file, and nothing of this Airflow has run yet that names its host"
        return Finding("shared", Severity.UNCLEAR, message, UNCLEAR_REMEDY)
    if others := sorted(hosts - {here}):
        message = f"the state is a file on {here}, and Airflow also runs on {_listed(others)}"
        return Finding("shared", Severity.WARNING, message, FILE_REMEDY)
    return Finding("shared", Severity.OK, f"the state is a file, and Airflow runs on {here} alone")


def guarantees(shared: Finding, risks: Sequence[str]) -> list[Finding]:
    """Judge each guarantee that needs a shared state, or say once that it is unclear whether the state is shared.

    :param shared: whether it is shared
    :param risks: what endangers what the store holds
    """
    if shared.severity is Severity.UNCLEAR:
        return [shared]
    once = replace(shared, check="exactly once")
    if risks and shared.severity is Severity.OK:
        remedy = "Change that in the store's configuration."
        once = Finding("exactly once", Severity.WARNING, "; ".join(risks), remedy)
    return [replace(shared, check="one budget"), once, replace(shared, check="wake-ups")]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shorten, names[:MAX_LISTED])) + more


def budget(snapshot: Snapshot) -> Finding:
    """Check the rate budget."""
    used = sum(snapshot.used.values())
    message = f"{used} of {snapshot.requests_per_minute} requests in the last minute, {snapshot.outlook}"
    if not snapshot.shared:
        remedy = "See the state above: until it can be used, this host uses a quarter of the limit."
        return Finding("budget", Severity.PROBLEM, f"{message}; not shared", remedy)
    if snapshot.cooldown_seconds:
        message = f"{message}; cool-down after a 429 response, {snapshot.cooldown_seconds:.0f} s left"
        remedy = "Find out who else uses the key, or lower requests_per_minute."
        return Finding("budget", Severity.WARNING, message, remedy)
    if snapshot.learned:
        remedy = "Find out what limits the key and who else uses it; requests_per_minute and burst set it for good."
        return Finding("budget", Severity.WARNING, f"{message}; learned: {snapshot.learned}", remedy)
    if snapshot.stated_per_minute > snapshot.requests_per_minute:
        message = f"{message}; responses state a limit of {snapshot.stated_per_minute:.0f} a minute"
        return Finding("budget", Severity.OK, message, "Set the connection's requests_per_minute to use all of it.")
    return Finding("budget", Severity.OK, message)


def webhooks(*, enabled: bool) -> Finding:
    """Report whether webhooks are received."""
    message = (
        "the receiver is on, at /techflow/webhooks/ and the connection's id"
        if enabled
        else "the receiver is off, so waits rely on polling: the connection has no webhook_secret"
    )
    return Finding("webhooks", Severity.OK, message)


def triggerer(*, alive: bool | None) -> Finding:
    """Check that a triggerer runs deferred tasks.

    :param alive: whether one sends heartbeats; None when Airflow's database can't be read
    """
    if alive is None:
        message = "Airflow's database can't be read, so it is unknown whether a triggerer is running"
        return Finding("triggerer", Severity.WARNING, message, "For a new Airflow: airflow db migrate.")
    if alive:
        return Finding("triggerer", Severity.OK, "a triggerer is running")
    message = "no triggerer is running: deferrable tasks stay deferred until one starts"
    remedy = "Start one: airflow triggerer. `airflow dags test` works without one."
    return Finding("triggerer", Severity.WARNING, message, remedy)


UNKNOWN_WORD = "running, since the word is unknown: if it is final, add it to completed_statuses or failed_statuses"
MEANINGS = {
    "id": "the execution's id",
    "workflow_id": "its workflow",
    "status": "its status",
    "started_at": "when it started",
    "finished_at": "when it finished",
    "error": "why it failed",
}


@dataclass(frozen=True, slots=True)
class Inference:
    """How a part of a response is interpreted.

    :param subject: the part
    :param observed: its value
    :param meaning: how it is interpreted
    """

    subject: str
    observed: str
    meaning: str


def infer(page: httpx.Response, settings: Settings) -> list[Inference]:
    """Return how a page of the execution history is interpreted."""
    if settings.holds_key(page.content):
        return [Inference("response", "text that contains the API key, not shown", "nothing")]
    try:
        value = json_of(page)
        rows = list(items(value, "a list of executions", "executions"))
    except DecodeError as error:
        return [Inference("response", error.received, f"nothing: expected {error.expected}")]
    objects = [row for row in rows if isinstance(row, dict)]
    shape = f"an object with {', '.join(map(shorten, value))}" if isinstance(value, dict) else "a bare list"
    return [
        Inference("response", shape, f"a list of {len(rows)} executions"),
        Inference("next page", *_next_page(value, page)),
        *(_field(name, objects) for name in EXECUTION_NAMES),
        *_unused_fields(objects),
        *_status_words(objects, settings.status_words),
        *_unreadable(rows),
    ]


def ids_of(page: httpx.Response) -> list[Json]:
    """Return the ids that a page of the execution history lists."""
    try:
        rows = items(json_of(page), "a list of executions", "executions")
        return [get_first(row, *EXECUTION_NAMES["id"]) for row in rows if isinstance(row, dict)]
    except DecodeError:
        return []


def infer_filters(page: httpx.Response, filtered: Mapping[str, httpx.Response]) -> list[Inference]:
    """Return which query parameters the history honours, and what to set.

    :param page: without a query
    :param filtered: the response with each of `FILTERS`; those that were rejected are missing
    """
    all_ids, shown = ids_of(page), {name: ids_of(each) for name, each in filtered.items()}
    results = {name: "ignored" if name in shown else "rejected" for name in FILTERS}
    results |= {name: "honoured" for name, ids in shown.items() if not ids or (len(ids) == 1 and name == "limit")}
    if len(all_ids) == 1:
        results["limit"] = "unknown, since there is one execution"
    honoured = [text for name, text in QUERIES.items() if results[name] == "honoured"]
    advice = f"set the connection's extra history_query to {'&'.join(honoured)}" if honoured else "leave it empty"
    observed = ", ".join(f"{name} is {result}" for name, result in results.items())
    return [Inference("history_query", observed, advice)]


def _next_page(value: Json, page: httpx.Response) -> tuple[str, str]:
    url = page.links.get("next", {}).get("url") or (value.get("next") if isinstance(value, dict) else None)
    return (shorten(str(url)), "the next page, if it has the same origin") if url else ("none", "the only page")


def _found(row: dict[str, Json], name: str) -> tuple[str, Json] | None:
    """Return the key under which the parsers find a field, and its value."""
    value = get_first(row, *EXECUTION_NAMES[name])
    return None if value is None else next((key, each) for key, each in row.items() if each is value)


def _field(name: str, objects: Sequence[dict[str, Json]]) -> Inference:
    found = [pair for each in objects if (pair := _found(each, name))]
    keys = Counter(key for key, _ in found).most_common(3)
    observed = ", ".join(f"{shorten(key)} in {count} of {len(objects)}" for key, count in keys)
    return Inference(name, f"{observed}, such as {quote(found[0][1])}" if found else "nothing", MEANINGS[name])


def _unused_fields(objects: Sequence[dict[str, Json]]) -> list[Inference]:
    used = {pair[0] for each in objects for name in EXECUTION_NAMES if (pair := _found(each, name))}
    known = used.union(*EXECUTION_NAMES.values())
    others = dict.fromkeys(key for each in objects for key in each if key not in known)
    names = ", ".join(shorten(key, 40) for key in list(others)[:20])
    return [Inference("further fields", names, "kept unchanged, and not used")] if others else []


def _status_words(objects: Sequence[dict[str, Json]], words: StatusWords) -> list[Inference]:
    found = (get_first(each, *EXECUTION_NAMES["status"]) for each in objects)
    counts = Counter(each for each in found if isinstance(each, str))
    return [
        Inference(
            f"status {shorten(word)!r}",
            f"in {count} of {len(objects)}",
            words.state(word) if words.knows(word) else UNKNOWN_WORD,
        )
        for word, count in counts.most_common()
    ]


def _unreadable(rows: Sequence[Json]) -> list[Inference]:
    reasons: list[str] = []
    for row in rows:
        try:
            Execution.read(row)
        except DecodeError as error:
            reasons.append(f"nothing, since they are left out: {error}")
    return [Inference("unreadable", f"{len(reasons)} of {len(rows)}", reasons[0])] if reasons else []
