"""What `doctor` looks at: each check is a verdict with its reason and, where something is wrong, a remedy; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from techflow_provider.client.parsing import counted
from techflow_provider.hooks.diagnosis import Diagnosis
from techflow_provider.state.snapshot import Snapshot

# Below this a skew is what a network and a date without fractions make of nothing.
SKEW_WARNING_SECONDS = 30.0
OLDEST_AIRFLOW, NEXT_AIRFLOW = (2, 11), (4,)


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    :param check: what was looked at
    :param verdict: how it is
    :param said: why
    :param remedy: what to do; empty when nothing needs doing
    """

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""


def versions(installed: Mapping[str, str]) -> Finding:
    """Judge the versions; `airflow` must be among them."""
    said = ", ".join(f"{name} {version}" for name, version in installed.items())
    release = tuple(int(part) for part in installed["airflow"].split(".")[:2] if part.isdigit())
    if OLDEST_AIRFLOW <= release < NEXT_AIRFLOW:
        return Finding("versions", Verdict.OK, said)
    return Finding("versions", Verdict.WARNING, said, "This package is tried on Airflow 2.11 and 3.0 to 3.3.")


def answer(diagnosis: Diagnosis | None, workflows: int, seconds: float) -> Finding:
    """Judge whether TechFlow answered as it should."""
    if diagnosis is None:
        said = f"the API key sees {counted(workflows, 'workflow')}; it took {seconds:.2f} s"
        return Finding("techflow", Verdict.OK, said)
    return Finding("techflow", Verdict.PROBLEM, f"{diagnosis.trouble}: {diagnosis.said}", diagnosis.remedy)


def skew(server: datetime | None, here: datetime) -> Finding:
    """Judge how far this host's clock is from TechFlow's.

    :param server: the answer's Date, when it has one
    :param here: this host's clock at the same moment
    """
    if server is None:
        return Finding("clock", Verdict.OK, "the answer has no date to compare with")
    seconds = (here - server).total_seconds()
    said = f"this host is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} TechFlow"
    if abs(seconds) <= SKEW_WARNING_SECONDS:
        return Finding("clock", Verdict.OK, said)
    remedy = "Set the clock (NTP): started_after and signed webhooks compare times of both sides."
    return Finding("clock", Verdict.WARNING, said, remedy)


def no_store(trouble: str) -> Finding:
    """Say that `[techflow] state_url` names no store that can be used."""
    return Finding("state", Verdict.PROBLEM, trouble, "Correct it: without it no request is sent.")


def store(shown: str, trouble: str | None) -> Finding:
    """Judge whether the shared state can be written and read."""
    if trouble is None:
        return Finding("state", Verdict.OK, f"{shown} can be written and read")
    remedy = (
        "Correct [techflow] state_url, or let Airflow's user write there; until then a quarter of the limit goes on."
    )
    return Finding("state", Verdict.PROBLEM, trouble, remedy)


def spread(executors: Sequence[str], *, in_file: bool) -> Finding:
    """Judge whether the state reaches all hosts that run tasks.

    :param executors: those that may run tasks on several hosts
    :param in_file: whether the state is a file of this host
    """
    if not executors:
        return Finding("hosts", Verdict.OK, "all tasks run on this host")
    if not in_file:
        return Finding("hosts", Verdict.OK, "tasks may run on several hosts, and the state is no file of this one")
    said = f"{' and '.join(executors)} may run tasks on several hosts, and the state is a file of this one"
    remedy = "Set [techflow] state_url = redis://…, or give each host its part of requests_per_minute."
    return Finding("hosts", Verdict.WARNING, said, remedy)


def budget(snapshot: Snapshot) -> Finding:
    """Judge how the budget stands."""
    used = sum(snapshot.used.values())
    said = f"{used} of {snapshot.requests_per_minute} requests in the last minute, {snapshot.outlook}"
    if not snapshot.shared:
        remedy = "See the state above: until it can be used, this host goes on with a quarter of the limit."
        return Finding("budget", Verdict.PROBLEM, f"{said}; not shared", remedy)
    if snapshot.cooldown_seconds:
        said = f"{said}; TechFlow answered 429, and all wait {snapshot.cooldown_seconds:.0f} s more"
        return Finding("budget", Verdict.WARNING, said, "See who else uses the key, or lower requests_per_minute.")
    return Finding("budget", Verdict.OK, said)


def webhooks(*, receives: bool) -> Finding:
    """Say whether webhooks are received."""
    if receives:
        return Finding("webhooks", Verdict.OK, "the receiver is on: /techflow/webhooks/ and the connection's id")
    return Finding("webhooks", Verdict.OK, "the receiver is off, and waits poll: the connection has no webhook_secret")


def triggerer(*, alive: bool | None) -> Finding:
    """Judge whether deferrable tasks find a triggerer.

    :param alive: whether one beats; None where Airflow's database can't tell
    """
    if alive is None:
        said = "Airflow's database can't be read, so nothing is known of a triggerer"
        return Finding("triggerer", Verdict.WARNING, said, "In a new Airflow: airflow db migrate.")
    if alive:
        return Finding("triggerer", Verdict.OK, "a triggerer is running")
    said = "no triggerer is running: deferrable tasks stay deferred until there is one"
    return Finding("triggerer", Verdict.WARNING, said, "Start one: airflow triggerer. `airflow dags test` needs none.")
