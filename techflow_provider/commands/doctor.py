"""`doctor`: gathers what the checks judge, with one request to TechFlow, and two with `--learn`."""

from __future__ import annotations

import platform
import secrets
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from airflow.jobs.job import most_recent_job
from sqlalchemy.exc import SQLAlchemyError

from techflow_provider import __version__
from techflow_provider.client import Client, InvalidParameterError, RetryPolicy, TechFlowError
from techflow_provider.client.calls import raw
from techflow_provider.client.models import read_workflows
from techflow_provider.client.parsing import DecodeError, counted, http_date, parse_json
from techflow_provider.commands import checks
from techflow_provider.commands.checks import Finding, Verdict
from techflow_provider.commands.learn import learn
from techflow_provider.commands.report import Report, table
from techflow_provider.commands.session import look_up
from techflow_provider.hooks.budget import MeteredBudget, is_for_one_host, open_budget, open_state, spreading_executors
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.diagnosis import Cause, Diagnosis, diagnose, uses_proxy
from techflow_provider.state.store import Store, StoreError

# Somebody waits for the answer.
DEADLINE_SECONDS = 15.0
SPACE = "doctor"
TTL_SECONDS = 60.0
PACKAGES = {"airflow": "apache-airflow", "common-compat": "apache-airflow-providers-common-compat", "httpx": "httpx"}


def examine(args: Namespace) -> Report:
    """Look at everything that must be right, or at a page of the history with `--learn`."""
    return _learn(args) if args.learn else _report(list(_findings(args.conn_id)))


def _report(findings: list[Finding]) -> Report:
    lines = [line for finding in findings for line in _lines(finding)]
    problems, warnings = (
        sum(finding.verdict is each for finding in findings) for each in (Verdict.PROBLEM, Verdict.WARNING)
    )
    ending = f"{counted(problems, 'problem')}, {counted(warnings, 'warning')} in {len(findings)} checks"
    return Report([asdict(each) for each in findings], "\n".join([*lines, ending]), 1 if problems else 0)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.verdict.ljust(8)} {finding.check.ljust(11)} {finding.said}"
    if finding.remedy:
        yield f"{' ' * 21}→ {finding.remedy}"


def _findings(conn_id: str) -> Iterator[Finding]:
    yield checks.versions(_installed())
    yield from _state_findings()
    yield checks.triggerer(alive=_triggerer_beats())
    try:
        connection = look_up(conn_id)
    except InvalidParameterError as error:
        yield Finding(
            "connection", Verdict.PROBLEM, str(error), "Correct the connection; nothing more can be looked at."
        )
        return
    settings = connection.settings
    said = f"{conn_id}: {settings.base_url}, {connection.requests_per_minute} requests a minute"
    yield Finding("connection", Verdict.OK, said)
    # A state_url that can't be used was told above, and nothing is sent then.
    with suppress(InvalidParameterError):
        budget = open_budget(connection)
        yield from _answer_findings(connection, budget)
        yield checks.budget(budget.snapshot())
    yield checks.webhooks(receives=connection.webhook_secret is not None)


def _installed() -> dict[str, str]:
    found = {"airflow-provider-techflow": __version__}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "unknown"
    return {**found, "python": platform.python_version()}


def _state_findings() -> Iterator[Finding]:
    try:
        store, _ = open_state()
    except InvalidParameterError as error:
        yield checks.no_store(str(error))
        return
    yield checks.store(store.location, _trouble(store))
    yield checks.spread(spreading_executors(), in_file=is_for_one_host())


def _triggerer_beats() -> bool | None:
    """Whether a triggerer told Airflow's database lately that it runs; None where that can't be read."""
    try:
        job = most_recent_job("TriggererJob")
    except SQLAlchemyError:
        return None
    return job is not None and job.is_alive()


def _trouble(store: Store) -> str | None:
    """Return why the store can't be used, after writing and reading a record."""
    name = secrets.token_hex(8)
    try:
        store.put(SPACE, name, name, TTL_SECONDS)
        entry = store.get(SPACE, name)
        store.drop(SPACE, name)
    except StoreError as error:
        return str(error)
    return None if entry is not None and entry.value == name else f"{store.location} does not keep what is written"


@dataclass(frozen=True, slots=True)
class _Seen:
    diagnosis: Diagnosis | None
    workflows: int = 0
    seconds: float = 0.0
    server_time: datetime | None = None
    own_time: datetime | None = None


def _answer_findings(connection: TechFlowConnection, budget: MeteredBudget) -> Iterator[Finding]:
    seen = _see(connection, budget)
    yield checks.answer(seen.diagnosis, seen.workflows, seen.seconds)
    if seen.own_time is not None:
        yield checks.skew(seen.server_time, seen.own_time)


def _see(connection: TechFlowConnection, budget: MeteredBudget) -> _Seen:
    """Read the workflows once, and keep the answer's date."""
    try:
        with _client(connection, budget) as client:
            response = client.send(raw("GET", "/workflows"))
    except TechFlowError as error:
        return _Seen(diagnose(error, through_proxy=uses_proxy(connection.settings)))
    own_time = datetime.now(UTC) - response.elapsed / 2
    date = http_date(response.headers.get("date", ""))
    try:
        count = len(read_workflows(parse_json(response.content)))
    except DecodeError as error:
        return _Seen(_not_techflow(connection, error, response.content), server_time=date, own_time=own_time)
    return _Seen(None, count, response.elapsed.total_seconds(), date, own_time)


def _not_techflow(connection: TechFlowConnection, error: DecodeError, content: bytes) -> Diagnosis:
    shown = "words that repeat the API key" if connection.settings.holds_key(content) else error.received
    return Diagnosis(
        Cause.HOST,
        f"GET /workflows: expected {error.expected}, got {shown}",
        "Check the connection's host, which is the base URL with its path.",
    )


def _client(connection: TechFlowConnection, budget: MeteredBudget) -> Client:
    settings = replace(connection.settings, deadline_seconds=DEADLINE_SECONDS)
    return Client(settings=settings, budget=budget, retry=RetryPolicy(max_attempts=1))


def _learn(args: Namespace) -> Report:
    connection = look_up(args.conn_id)
    with _client(connection, open_budget(connection)) as client:
        response = client.send(raw("GET", "/executions"))
    lessons: list[dict[str, Any]] = [asdict(each) for each in learn(response, connection.settings)]
    return Report([*lessons], table(lessons, ("what", "met", "taken_for")))
