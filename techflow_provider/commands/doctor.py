"""`doctor`: collects what the checks need, with one request to TechFlow; `--learn` sends a few for the history."""

from __future__ import annotations

import json
import os
import secrets
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from airflow import __version__ as airflow_version
from airflow.jobs.job import Job, most_recent_job
from airflow.models.connection import Connection
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.common.compat.sdk import AirflowConfigException, conf
from airflow.utils.session import create_session
from httpx import Response
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from techflow_provider.client import Client, InvalidParameterError, RetryPolicy, TechFlowError
from techflow_provider.client.calls import raw
from techflow_provider.client.models import read_workflows
from techflow_provider.client.parsing import DecodeError, counted, http_date, json_of
from techflow_provider.commands import checks, console
from techflow_provider.commands.checks import Finding, Severity
from techflow_provider.commands.console import Report, connection_in_environment, find_connection, read_connection
from techflow_provider.compat import has_api_server
from techflow_provider.deferral import default_poll_interval
from techflow_provider.hooks.api_server import api_server_state_url, http_store, this_component
from techflow_provider.hooks.budget import MeteredBudget, open_budget
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.diagnosis import Cause, diagnose, uses_proxy
from techflow_provider.hooks.state import FILE, METADATA, choice, open_state, served_store
from techflow_provider.state.components import Component, reported
from techflow_provider.state.optimistic import OptimisticStore
from techflow_provider.state.store import Store, StoreError, Write
from techflow_provider.submission.airflow import history_lag
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.model import Origin
from techflow_provider.triggers.outcomes import first_event_delay

# A person waits for the result.
DEADLINE_SECONDS = 15.0
NAMESPACE = "doctor"
STATE_REMEDY = (
    "Correct what the message names, or [techflow] state_url; until then this host uses at most a quarter of the "
    "limit, and one budget, exactly once and wake-ups aren't guaranteed."
)
TASKS_REMEDY = (
    "Correct it, or set [techflow] state_url, and run doctor in a task. A task that can't reach the state starts "
    "nothing, and one budget and wake-ups aren't guaranteed then."
)
# Airflow 3 refuses a task its database with a RuntimeError.
UNREADABLE = (SQLAlchemyError, RuntimeError)
CONNECTION_REMEDY = "Correct the connection; the remaining checks need it."
TTL_SECONDS = 60.0
MAX_HOSTS = 1000
MAX_STARTS = 10
# Each setting, read as tasks read it. The state's own are checked with the state.
SETTINGS: dict[str, Callable[[], object]] = {
    "poll_interval": default_poll_interval,
    "history_lag": history_lag,
    "first_event_delay": first_event_delay,
    "webhook_url_tokens": partial(conf.getboolean, "techflow", "webhook_url_tokens", fallback=True),
    **{name: partial(conf.get, "techflow", name, fallback="") for name in ("state_url", "state_secret", "deployment")},
}


def examine(args: Namespace) -> Report:
    """Check the whole setup, or with `--learn` infer what the connection should correct."""
    return _learn(args.conn_id) if args.learn else _report(list(_findings(args.conn_id)))


def _learn(conn_id: str) -> Report:
    connection = read_connection(conn_id)
    budget = open_budget(connection)
    page, workflows = (_get(path, connection, budget) for path in ("/executions", "/workflows"))
    inferences, extra = checks.infer(page, workflows, connection.settings)
    if checks.objects_of(page, "executions"):
        responses: dict[str, Response] = {}
        for name, value in checks.FILTERS.items():
            with suppress(TechFlowError):
                responses[name] = _get("/executions", connection, budget, {name: value})
        inference, query = checks.infer_filters(page, responses)
        inferences.append(inference)
        extra |= {"history_query": query} if query else {}
    rows, columns = [asdict(each) for each in inferences], ("subject", "observed", "meaning")
    advice = f"Add to the connection's extra:\n{json.dumps(extra, indent=2)}" if extra else "Nothing is to be added."
    added = asdict(checks.Inference("extra", counted(len(extra), "setting"), extra))
    return Report([*rows, added], text=f"{console.table(rows, columns)}\n\n{advice}")


def _report(findings: list[Finding]) -> Report:
    lines = [line for finding in findings for line in _lines(finding)]
    severities = [finding.severity for finding in findings]
    problems, warnings = severities.count(Severity.PROBLEM), severities.count(Severity.WARNING)
    unclear = f", {count} unclear" if (count := severities.count(Severity.UNCLEAR)) else ""
    summary = f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}{unclear} in {len(findings)} checks"
    text = "\n".join([*lines, summary])
    return Report([asdict(each) for each in findings], text=text, code=1 if problems else 0)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.severity.ljust(8)} {finding.check.ljust(12)} {finding.message}"
    if finding.remedy:
        yield f"{' ' * 22}→ {finding.remedy}"


def _findings(conn_id: str) -> Iterator[Finding]:
    yield checks.versions(airflow_version)
    yield checks.settings(list(filter(None, map(_unreadable, SETTINGS))))
    connection, unusable, origin = None, "", ""
    try:
        found = find_connection(conn_id)
        origin = _origin(found)
        connection = TechFlowConnection.read(found)
    except InvalidParameterError as error:
        unusable = str(error)
    yield from _state_findings(connection)
    yield checks.triggerer(alive=_is_triggerer_alive())
    variable = _variable(conn_id)
    if variable in os.environ and connection_in_environment(conn_id) is None:
        message = f"{variable} is neither JSON with Airflow's fields nor a URI, so that Airflow passes over it silently"
        instead = f" and uses {origin}" if origin else ""
        yield Finding("connection", Severity.WARNING, f"{message}{instead}", "Correct the variable, or remove it.")
    if connection is None:
        yield Finding("connection", Severity.PROBLEM, unusable, CONNECTION_REMEDY)
        return
    settings = connection.settings
    message = f"{conn_id} from {origin}: {settings.base_url}, {connection.requests_per_minute} requests a minute"
    yield Finding("connection", Severity.OK, message)
    for problem in connection.problems:
        yield Finding("connection", Severity.WARNING, problem, "Correct the connection's extra.")
    # An unusable state_url is reported above; nothing can be sent then.
    with suppress(InvalidParameterError, AirflowConfigException):
        budget = open_budget(connection)
        yield from _response_findings(connection, budget)
        yield checks.budget(budget.snapshot())
        with suppress(StoreError):
            yield checks.written_times(_seconds_ahead(connection))
    yield checks.webhooks(enabled=connection.webhook_secret is not None)


def _unreadable(name: str) -> str | None:
    """Return why a setting can't be read, if so."""
    try:
        SETTINGS[name]()
    except InvalidParameterError as error:
        return str(error)
    except AirflowConfigException as error:
        # What follows is the output of a command that prints a secret when it succeeds.
        return f"[techflow] {name}: {str(error).partition(' Output: ')[0]}"
    return None


def _variable(conn_id: str) -> str:
    return f"AIRFLOW_CONN_{conn_id.upper()}"


def _origin(found: Connection) -> str:
    """Return where Airflow has found a connection."""
    # In a task of Airflow 3, it has no id.
    if getattr(found, "id", None) is not None:
        return "Airflow's database"
    variable = connection_in_environment(found.conn_id)
    if variable is not None and variable.get_uri() == found.get_uri():
        return f"the variable {_variable(found.conn_id)}"
    return "a secrets backend" if isinstance(found, Connection) else "Airflow's database or a secrets backend"


def _seconds_ahead(connection: TechFlowConnection) -> list[float]:
    """Return how far the times of the last starts are ahead of the responses' Date, where both are recorded.

    :raises StoreError: the state can't be read
    """
    store = open_state(connection).store
    reports = (each.report for each in AttemptStore(store, connection.settings.site, "").known())
    shown = (each for each in reports if each and each["decision"] == Origin.STARTED and each["started_at"])
    times = sorted((each["sent_at"], each["started_at"]) for each in shown)[-MAX_STARTS:]
    return [(datetime.fromisoformat(at) - datetime.fromisoformat(sent)).total_seconds() for sent, at in times]


def _state_findings(connection: TechFlowConnection | None) -> Iterator[Finding]:
    key = NAMESPACE if connection is None else connection.settings.account
    try:
        store = served_store() if connection is None else open_state(connection).store
        _try(store, f"{key}/{NAMESPACE}")
        found = list(guarantees(store, [component for component, _ in reported(store, key)]))
    except (InvalidParameterError, AirflowConfigException) as error:
        reason = _unreadable("state_url") or str(error)
        yield Finding("state", Severity.PROBLEM, reason, "Correct it: until then, no request is sent.")
        return
    except StoreError as error:
        yield Finding("state", Severity.PROBLEM, str(error), STATE_REMEDY if connection else CONNECTION_REMEDY)
        return
    yield Finding("state", Severity.OK, f"{store.location} can be written and read ({choice().reason})")
    if connection and choice().kind == METADATA and has_api_server():
        yield _tasks(connection, f"{key}/{NAMESPACE}")
    yield from found


def _tasks(connection: TechFlowConnection, namespace: str) -> Finding:
    """Try the state at the API server, as processes do that have no access to Airflow's database."""
    place = api_server_state_url()
    try:
        _try(http_store(place, connection), namespace)
    except (StoreError, InvalidParameterError) as error:
        message = f"tasks and triggers reach the state at the API server, and this process can't: {error}"
        return Finding("tasks", Severity.WARNING, message, TASKS_REMEDY)
    return Finding("tasks", Severity.OK, f"tasks and triggers reach the state at {place}, and so does this process")


def guarantees(store: Store, components: Sequence[Component]) -> Iterator[Finding]:
    """Judge which guarantees hold, by what is observed of a store and of Airflow.

    :param components: those that have used the store in the last day
    :raises StoreError: the store can't be read
    """
    risks = store.warnings() if isinstance(store, OptimisticStore) else ()
    here = this_component()
    stored = checks.shared_store(store.location, here, components)
    shared = checks.shared_file(here.host, _hosts()) if choice().kind == FILE else stored
    yield from checks.guarantees(shared, risks, checks.triggerers(store.location, _waits(), components))
    if other := checks.other_versions(here, components):
        yield other


def _try(store: Store, namespace: str) -> None:
    """Write and read a value.

    :raises StoreError: that isn't possible
    """
    name = secrets.token_hex(8)
    store.update(namespace, name, lambda *_: (Write(name, TTL_SECONDS), None))
    values = [entry.value for entry in store.entries(namespace, name)]
    store.update(namespace, name, lambda *_: (Write(None), None))
    if values != [name]:
        raise StoreError(f"{store.location} does not return what was written")


def _hosts() -> frozenset[str] | None:
    """Return the hosts on which Airflow's jobs and tasks ran in the last day; None where its database can't be read."""
    since = datetime.now(UTC) - timedelta(days=1)
    jobs = select(Job.hostname).where(Job.latest_heartbeat > since)
    tasks = select(TaskInstance.hostname).where(TaskInstance.start_date > since)
    try:
        with create_session() as session:
            rows = session.scalars(jobs.union(tasks).limit(MAX_HOSTS)).all()
    except UNREADABLE:
        return None
    return frozenset(filter(None, rows))


def _waits() -> int | None:
    """Return how many waits of this package triggerers have; None where Airflow's database can't be read."""
    ours = Trigger.classpath.startswith("techflow_provider."), Trigger.triggerer_id.is_not(None)
    try:
        with create_session() as session:
            return session.scalar(select(func.count()).select_from(Trigger).where(*ours)) or 0
    except UNREADABLE:
        return None


def _is_triggerer_alive() -> bool | None:
    """Whether a triggerer has sent a heartbeat lately; None when Airflow's database can't be read."""
    try:
        job = most_recent_job("TriggererJob")
    except UNREADABLE:
        return None
    return job is not None and job.is_alive()


def _response_findings(connection: TechFlowConnection, budget: MeteredBudget) -> Iterator[Finding]:
    """List the workflows once, and check the response and its date."""
    try:
        response = _get("/workflows", connection, budget)
    except TechFlowError as error:
        found = diagnose(error, through_proxy=uses_proxy(connection.settings))
        yield Finding("techflow", Severity.PROBLEM, f"{found.cause}: {found.message}", found.remedy)
        return
    local_time, seconds = datetime.now(UTC) - response.elapsed / 2, response.elapsed.total_seconds()
    try:
        count = counted(len(read_workflows(json_of(response), connection.settings.names["workflow"])), "workflow")
        yield Finding("techflow", Severity.OK, f"the API key can access {count}; response time {seconds:.2f} s")
    except DecodeError as error:
        is_secret = connection.settings.holds_key(response.content)
        received = "text that contains the API key" if is_secret else error.received
        message = f"{Cause.HOST}: GET /workflows: expected {error.expected}, got {received}"
        remedy = "Check the connection's host, which is the base URL including its path."
        yield Finding("techflow", Severity.PROBLEM, message, remedy)
    yield checks.clock_skew(http_date(response.headers.get("date", "")), local_time)


def _get(
    path: str, connection: TechFlowConnection, budget: MeteredBudget, params: dict[str, str] | None = None
) -> Response:
    settings = replace(connection.settings, deadline_seconds=DEADLINE_SECONDS)
    with Client(settings=settings, budget=budget, retry=RetryPolicy(max_attempts=1)) as client:
        return client.send(raw("GET", path, params=params))
