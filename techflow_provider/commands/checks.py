"""The checks of `doctor` and the inferences of `doctor --learn`, as pure functions."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from statistics import median
from typing import TypeAlias

import httpx

from techflow_provider import __version__
from techflow_provider.client.models import FIELDS, Execution, StatusWords, read_executions, status_word
from techflow_provider.client.parsing import (
    DecodeError,
    Json,
    add_usual_names,
    counted,
    get_first,
    items,
    json_of,
    quote,
    read_time,
    shorten,
)
from techflow_provider.client.settings import Settings
from techflow_provider.state.components import Component
from techflow_provider.state.snapshot import Snapshot

# Network delay and a Date without fractions explain any smaller difference.
CLOCK_SKEW_WARNING_SECONDS = 30.0
# How many hosts and components a finding lists.
MAX_LISTED = 5
OLDEST_AIRFLOW, NEXT_AIRFLOW = (2, 11), (4,)
# Programs in which no task runs.
WITHOUT_TASKS = ("triggerer", "api-server", "api_server", "webserver", "gunicorn")
UNCLEAR_REMEDY = "Run a task that uses the connection, and doctor where Airflow's other components run."
FILE_REMEDY = "Leave [techflow] state_url empty, or set it to a store that all hosts can reach."

Row: TypeAlias = dict[str, Json]
Column: TypeAlias = list[Json]
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
    others = {each for each in components if each != here}
    users = sorted({f"{each.program} on {each.host}" for each in others})
    if not users:
        message = f"no other process has used {location} in the last day"
    elif all(any(name in each.program for name in WITHOUT_TASKS) for each in (here, *others)):
        message = f"no task has used {location} in the last day, only {_listed(users)}"
    else:
        return Finding("shared", Severity.OK, f"{location} is used by {_listed(users)}")
    return Finding("shared", Severity.UNCLEAR, message, UNCLEAR_REMEDY)


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


def triggerers(location: str, waiting: int | None, components: Sequence[Component]) -> Finding | None:
    """Report waits in a triggerer where none has used the store.

    :param waiting: how many waits of this package Airflow has handed to its triggerers; None where its database can't
        be read
    """
    if waiting == 0 or any("triggerer" in each.program for each in components):
        return None
    if waiting is None:
        message = f"no triggerer has used {location} in the last day, and whether one has waits can't be read from here"
        return Finding("wake-ups", Severity.UNCLEAR, message, UNCLEAR_REMEDY)
    message = f"a triggerer has {counted(waiting, 'wait')}, and no triggerer has used {location} in the last day"
    remedy = "Set [techflow] state_url to the same value in all components, and install this package in all of them."
    return Finding("wake-ups", Severity.WARNING, message, remedy)


def other_versions(here: Component, components: Sequence[Component]) -> Finding | None:
    """Report the components with another version of this package."""
    others = {f"{each.program} on {each.host} ({each.version})" for each in components if each.version != here.version}
    if not others:
        return None
    message = f"other versions of this package have used the state in the last day: {_listed(sorted(others))}"
    return Finding("components", Severity.WARNING, message, "Install the same version in all components.")


def guarantees(shared: Finding, risks: Sequence[str], waits: Finding | None = None) -> list[Finding]:
    """Judge each guarantee that needs a shared state, or say once that it is unclear whether the state is shared.

    :param shared: whether it is shared
    :param risks: what endangers what the store holds
    :param waits: what is wrong with the triggerers (see `triggerers`)
    """
    if shared.severity is Severity.UNCLEAR:
        unclear = replace(shared, message=f"{shared.message}: one budget, exactly once and wake-ups can't be judged")
        return [unclear, waits] if waits and waits.severity is Severity.WARNING else [unclear]
    once = replace(shared, check="exactly once")
    if risks and shared.severity is Severity.OK:
        remedy = "Set Redis's maxmemory-policy to noeviction and appendonly to yes."
        once = Finding("exactly once", Severity.WARNING, "; ".join(risks), remedy)
    # A triggerer polls and is woken, and starts nothing.
    others = waits if waits and shared.severity is Severity.OK else shared
    return [replace(others, check="one budget"), once, replace(others, check="wake-ups")]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shorten, names[:MAX_LISTED])) + more


def budget(snapshot: Snapshot) -> Finding:
    """Check the rate budget."""
    used = sum(snapshot.used.values())
    message = f"{used} of {snapshot.requests_per_minute} requests in the last minute, {snapshot.outlook}"
    if not snapshot.shared:
        remedy = "See the state above: until it can be used, this host uses at most a quarter of the limit."
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
        message = "Airflow's database can't be read from here, so it is unknown whether a triggerer is running"
        remedy = "Run doctor where the triggerer runs. For a new Airflow: airflow db migrate."
        return Finding("triggerer", Severity.UNCLEAR, message, remedy)
    if alive:
        return Finding("triggerer", Severity.OK, "a triggerer is running")
    message = "no triggerer is running: deferrable tasks stay deferred until one starts"
    remedy = "Start one: airflow triggerer. `airflow dags test` works without one."
    return Finding("triggerer", Severity.WARNING, message, remedy)


UNKNOWN_WORD = "unclear: it counts as running; if it is final, add it to completed_statuses or failed_statuses"
# What the status of a success begins with.
SUCCESS = ("succe", "complet", "done", "ok", "pass")
NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
ID_WORDS = ("id", "uid", "uuid", "guid", "key", "ref", "number")
MAX_ROWS = MAX_FIELDS = 200
MAX_WORDS = 12


@dataclass(frozen=True, slots=True)
class Inference:
    """How a part of a response is interpreted.

    :param subject: the part
    :param observed: its value
    :param meaning: how it is interpreted, or what to add to the connection's extra
    """

    subject: str
    observed: str
    meaning: Json


def _are_ids(values: Column, ids: Container[str]) -> bool:
    texts = {str(value) for value in values if isinstance(value, str | int)}
    return len(texts) == len(values) > 1 and not _are_times(values, ids) and not _are_references(values, ids)


def _are_references(values: Column, ids: Container[str]) -> bool:
    return all(str(value) in ids for value in values)


def _are_words(values: Column, _: Container[str]) -> bool:
    return all(isinstance(value, str) for value in values) and len(set(map(str, values))) <= MAX_WORDS


def _are_times(values: Column, _: Container[str]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(read_time({"time": value}, "time") for value in given)


def _are_errors(values: Column, _: Container[str]) -> bool:
    return any(values) and not all(values) and all(isinstance(value, str | None) for value in values)


# By the usual name of each field: what it means, what its values are, and how words in another name for it begin.
LOOKS: dict[str, tuple[str, Callable[[Column, Container[str]], bool], tuple[str, ...]]] = {
    "workflow.id": ("a workflow's id", _are_ids, ID_WORDS),
    "workflow.name": ("a workflow's name", _are_ids, ("title", "label")),
    "execution.id": ("the execution's id", _are_ids, ID_WORDS),
    "execution.workflow_id": ("its workflow", _are_references, (*ID_WORDS, "flow", "workflow", "pipeline", "job")),
    "execution.status": ("its status", _are_words, ("status", "state", "phase", "stage", "condition")),
    "execution.started_at": ("when it started", _are_times, ("start", "beg", "launch")),
    "execution.finished_at": ("when it finished", _are_times, ("finish", "end", "complet", "stop", "done", "clos")),
    "execution.error": ("why it failed", _are_errors, ("err", "fail", "reason", "problem", "fault", "exception")),
}


def infer(page: httpx.Response, workflows: httpx.Response, settings: Settings) -> tuple[list[Inference], Row]:
    """Return how a page of the execution history is interpreted, and what to add to the connection's extra.

    A name or word is added only when both it and the values with it show what it is.

    :param workflows: a page of the workflows that were executed
    """
    if settings.holds_key(page.content + workflows.content):
        return [Inference("response", "text that contains the API key, not shown", "nothing")], {}
    try:
        value = json_of(page)
        listed = list(items(value, "a list of executions", "executions"))
    except DecodeError as error:
        return [Inference("response", error.received, f"nothing: expected {error.expected}")], {}
    shape = f"an object with {', '.join(map(shorten, value))}" if isinstance(value, dict) else "a bare list"
    names, ids, inferences = dict(settings.field_names), set[str](), list[Inference]()
    for kind, rows in (("workflow", objects_of(workflows, "workflows")), ("execution", objects_of(page, "executions"))):
        found = _find_names(kind, [add_usual_names(row, settings.names[kind]) for row in rows], ids)
        names |= {field: paths[0] for field, paths in found.items() if len(paths) == 1}
        own = replace(settings, field_names=tuple(names.items())).names[kind]
        objects = [add_usual_names(row, own) for row in rows]
        inferences += [_field(field, objects, found.get(field, [])) for field in LOOKS if field.startswith(kind)]
        ids |= {str(get_first(row, *FIELDS["workflow"]["id"])) for row in objects}
    read = read_executions(list(objects), settings.status_words, unneeded=1)
    words = _learn_words(read.items, settings.status_words)
    extra: Row = {"fields": {**names}} if len(names) > len(settings.field_names) else {}
    for name in ("completed", "failed"):
        if getattr(words, name) != getattr(settings.status_words, name):
            extra[f"{name}_statuses"] = ", ".join(sorted(getattr(words, name)))
    inferences = [
        Inference("response", shape, f"a list of {len(listed)} executions"),
        Inference("next page", *_next_page(value, page)),
        *inferences,
        Inference("all fields", shorten(", ".join(dict.fromkeys(name for row in rows for name in row))), "kept"),
        *_status_words(read.items, words),
    ]
    if unreadable := len(listed) - len(read):
        meaning = f"nothing, since they are left out: {read.reason or 'expected objects'}"
        inferences.append(Inference("unreadable", f"{unreadable} of {len(listed)}", meaning))
    return inferences, extra


def objects_of(page: httpx.Response, wrapper: str) -> list[Row]:
    """Return the objects that a page lists."""
    try:
        return [row for row in items(json_of(page), "a list", wrapper) if isinstance(row, dict)]
    except DecodeError:
        return []


def infer_filters(page: httpx.Response, filtered: Mapping[str, httpx.Response]) -> tuple[Inference, str]:
    """Return which query parameters the history honours, and the query to set.

    :param page: without a query
    :param filtered: the response with each of `FILTERS`; those that were rejected are missing
    """
    counts = {name: len(objects_of(each, "executions")) for name, each in filtered.items()}
    results = {name: "ignored" if name in counts else "rejected" for name in FILTERS}
    results |= {name: "honoured" for name, count in counts.items() if not count or (count == 1 and name == "limit")}
    if len(objects_of(page, "executions")) == 1:
        results["limit"] = "unknown, since there is one execution"
    query = "&".join(text for name, text in QUERIES.items() if results[name] == "honoured")
    advice = f"set the connection's extra history_query to {query}" if query else "leave it empty"
    observed = ", ".join(f"{name} is {result}" for name, result in results.items())
    return Inference("history_query", observed, advice), query


def _find_names(kind: str, rows: Sequence[Row], ids: Container[str]) -> dict[str, list[str]]:
    """Return the fields that no row has under a usual name, each with the other names that it may have.

    :param ids: those of the workflows
    """
    leaves = [dict(_leaves(row)) for row in rows[:MAX_ROWS]]
    paths = list(dict.fromkeys(path for each in leaves for path in each))[:MAX_FIELDS]
    columns = {path: [each.get(path) for each in leaves] for path in paths}
    found: dict[str, list[str]] = {}
    for field, (_, fits, words) in LOOKS.items():
        if field.startswith(kind) and not any(_found(row, field) for row in rows):
            named = [path for path in paths if any(word.lower().startswith(words) for word in NAME_WORD.findall(path))]
            found[field] = [path for path in named if fits(columns[path], ids)]
    return found


def _leaves(row: Row, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the values in an object and the objects in it, with dots in their names."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name and "." not in name:
            yield f"{prefix}{name}", value


def _next_page(value: Json, page: httpx.Response) -> tuple[str, str]:
    url = page.links.get("next", {}).get("url") or (value.get("next") if isinstance(value, dict) else None)
    return (shorten(str(url)), "the next page, if it has the same origin") if url else ("none", "the only page")


def _found(row: Row, field: str) -> tuple[str, Json] | None:
    """Return the name under which the parsers find a field, and its value."""
    kind, _, name = field.partition(".")
    value = get_first(row, *FIELDS[kind][name])
    if value is None or (field == "execution.workflow_id" and isinstance(value, dict)):
        return None
    return next((key for key, each in row.items() if each is value), name), value


def _field(field: str, rows: Sequence[Row], candidates: Sequence[str]) -> Inference:
    """Return how a field is interpreted.

    :param candidates: the names to add, if it isn't read yet
    """
    meaning, subject = LOOKS[field][0], field.removeprefix("execution.")
    found = [pair for row in rows if (pair := _found(row, field))]
    if not found:
        return Inference(subject, " or ".join(map(shorten, candidates)) or "nothing", f"unclear: {meaning}")
    names = Counter(candidates[0] if candidates else name for name, _ in found).most_common(3)
    observed = ", ".join(f"{shorten(name)} in {count} of {len(rows)}" for name, count in names)
    value = found[0][1]
    if time := read_time({"time": value}, "time") if field.endswith("_at") else None:
        meaning = f"{meaning}, read as {time.isoformat()}"
    return Inference(subject, f"{observed}, such as {quote(value)}", meaning)


def _learn_words(executions: Sequence[Execution], words: StatusWords) -> StatusWords:
    """Return status words with those that the times and errors of their executions explain."""
    completed, failed = set(words.completed), set(words.failed)
    for status in {each.status or "" for each in executions if not each.has_known_status}:
        those, word = [each for each in executions if each.status == status], status_word(status)
        have_error = {bool(each.error) for each in those}
        if have_error == {True} and all(each.finished_at for each in those):
            failed.add(word)
        if have_error == {False} and all(each.finished_at for each in those) and word.startswith(SUCCESS):
            completed.add(word)
    return StatusWords(frozenset(completed), frozenset(failed))


def _status_words(executions: Sequence[Execution], words: StatusWords) -> Iterator[Inference]:
    for status, count in Counter(each.status or "" for each in executions).most_common():
        meaning = words.state(status) if words.knows(status) else UNKNOWN_WORD
        yield Inference(f"status {shorten(status)!r}", f"in {count} of {len(executions)}", meaning)
