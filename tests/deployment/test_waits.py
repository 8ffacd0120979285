"""Deferred waits in a whole Airflow: sixty in one triggerer, and every way in which one can end.

The figures are logged: pytest tests/deployment -k waits -o log_cli=true --log-cli-level=INFO
"""

from __future__ import annotations

import logging
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from techflow_provider.sandbox import Sandbox
from tests.deployment.airflow_deployment import GENEROUS_TIMEOUTS, KEY, Deployment, deployment
from tests.servers import until

HERE = Path(__file__).parent
figures = logging.getLogger("figures")

MANY = 60
WAYS = (
    *("cleared", "marked_failed", "marked_success", "timed_out", "timed_out_soft", "execution_timeout"),
    *("outage", "handed_over", "from_trigger"),
)
ENVIRONMENT = {
    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__TECHFLOW__POLL_INTERVAL": "3",
    "AIRFLOW__CORE__PARALLELISM": "6",
    **GENEROUS_TIMEOUTS,
}
LOOKED_UP = "serves all waits of the connection"


@pytest.fixture(scope="module")
def airflow() -> Iterator[Deployment]:
    """Run an Airflow whose TechFlow lets executions run until they are finished by hand."""
    sandbox = Sandbox(api_keys=(KEY,), limit=100, execution_seconds=3600, workflows_at_start={"wf_many": "many"})
    for way in WAYS:
        sandbox.add_workflow(way, id=f"wf_{way}")
    extra = {"requests_per_minute": 100}
    with deployment(
        sys.executable, [HERE / "dags" / "waits.py"], sandbox=sandbox, environment=ENVIRONMENT, extra=extra
    ) as running:
        running.await_dags("many_waits", "ends_of_waits")
        yield running


def await_deferred(airflow: Deployment, dag_id: str, count: int) -> None:
    """Wait until so many tasks of a run wait in the triggerer and have been looked for."""
    statement = f"SELECT count(*) FROM task_instance WHERE dag_id = '{dag_id}' AND state = 'deferred'"
    until(lambda: airflow.query(statement)[0][0] == str(count), 600, f"{count} deferred tasks of {dag_id}")
    polls = airflow.sandbox.count(path="/executions")
    until(lambda: airflow.sandbox.count(path="/executions") >= polls + 3, 600, "three polls")


def triggerer_log(airflow: Deployment, name: str = "triggerer") -> str:
    return (airflow.home / f"{name}.log").read_text(errors="replace")


def mapped_log(airflow: Deployment, map_index: int) -> str:
    folder = airflow.home / "logs" / "dag_id=many_waits" / "run_id=run" / "task_id=wait" / f"map_index={map_index}"
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("attempt=1.log*")))


def quantiles(name: str, values: list[float]) -> None:
    ordered = sorted(values)
    p99 = ordered[len(ordered) * 99 // 100]
    figures.info("%s: median %.2f s, p99 %.2f s (n=%d)", name, statistics.median(ordered), p99, len(ordered))


def moment(text: str) -> datetime:
    """Return a time of the database, which writes the offset in two digits."""
    return datetime.fromisoformat(text if ":" in text[-3:] or len(text) < 3 else f"{text}:00").astimezone(UTC)


def test_sixty_mapped_sensors_share_one_poll_and_one_look_up_and_each_has_its_own_log(airflow: Deployment) -> None:
    sandbox = airflow.sandbox
    ids = [sandbox.start("wf_many").id for _ in range(MANY)]
    airflow.trigger("many_waits")
    await_deferred(airflow, "many_waits", MANY)
    before, began = sandbox.count(path="/executions"), time.monotonic()
    until(lambda: sandbox.count(path="/executions") >= before + 5, 600, "five polls")
    per_minute = 5 / (time.monotonic() - began) * 60
    figures.info("Airflow %s: %.1f polls a minute for %d waits", airflow.version, per_minute, MANY)
    finished: dict[str, datetime] = {}
    for execution_id in ids:
        finished[execution_id] = sandbox.finish(execution_id).finished_at or datetime.now(UTC)
        time.sleep(0.2)
    ended = "FROM task_instance WHERE dag_id = 'many_waits' AND task_id = 'wait' AND state = 'success'"
    until(lambda: airflow.query(f"SELECT count(*) {ended}")[0][0] == str(MANY), 600, "sixty successes")
    assert per_minute <= 21
    assert triggerer_log(airflow).count(LOOKED_UP) == 1
    assert sandbox.count(status=429) == 0
    rows = f"SELECT map_index, end_date {ended}"
    ends = {int(index): moment(at) for index, at in airflow.query(rows)}
    to_event, to_success = [], []
    for map_index in range(MANY):
        log = mapped_log(airflow, map_index)
        (own,) = [each for each in ids if f"Waiting for execution {each}" in log]
        assert not [each for each in ids if each != own and each in log]
        logged = logged_at(log, own)
        to_event.append((logged - finished[own]).total_seconds())
        to_success.append((ends[map_index] - logged).total_seconds())
    quantiles(f"Airflow {airflow.version}: completion to event", to_event)
    quantiles(f"Airflow {airflow.version}: event to success", to_success)


def logged_at(log: str, execution_id: str) -> datetime:
    """Return when a task's log says first that its execution has ended."""
    lines = [line for line in log.splitlines() if f"Execution {execution_id} ended" in line]
    return min(map(line_time, lines))


def line_time(line: str) -> datetime:
    """Return when a line was logged."""
    match = re.search(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d[.,]\d+)(Z|[+-]\d\d:?\d\d)?", line)
    assert match, line
    return datetime.fromisoformat(f"{match[1]}T{match[2].replace(',', '.')}{match[3] or '+00:00'}").astimezone(UTC)


@pytest.fixture(scope="module")
def ways(airflow: Deployment) -> dict[str, str]:
    """Start a run with a sensor for each way to end; give the executions by way, once all sensors are deferred."""
    ids = {way: airflow.sandbox.start(f"wf_{way}").id for way in WAYS}
    airflow.trigger("ends_of_waits", conf=ids)
    statement = "SELECT count(*) FROM task_instance WHERE dag_id = 'ends_of_waits' AND trigger_id IS NOT NULL"
    until(lambda: int(airflow.query(statement)[0][0]) >= len(WAYS) - 3, 120, "deferred tasks")
    return ids


def end_of(airflow: Deployment, way: str, *states: str, seconds: float = 180.0) -> str:
    """Wait for the end of a way's task and return its log."""
    began = time.monotonic()
    task = airflow.await_task("ends_of_waits", way, *states, seconds=seconds)
    figures.info("%s %s: %s after %.1f s", airflow.version, way, task.state, time.monotonic() - began)
    return airflow.log("ends_of_waits", way)


def mark(airflow: Deployment, way: str, state: str) -> None:
    """Mark a task as a user does, or clear it."""
    command = [airflow.python, str(HERE / "mark.py"), "ends_of_waits", way, "run", state]
    done = subprocess.run(command, env=airflow.environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("way", "state", "words"),
    [
        ("timed_out", "failed", "AirflowSensorTimeout"),
        ("timed_out_soft", "skipped", "The deadline passed while waiting for execution"),
        ("execution_timeout", "failed", "AirflowTaskTimeout"),
    ],
)
def test_a_deferred_wait_ends_at_its_time_out(
    airflow: Deployment, ways: dict[str, str], way: str, state: str, words: str
) -> None:
    log = one_line(end_of(airflow, way, "failed", "skipped", "success"))
    assert airflow.task("ends_of_waits", way).state == state
    assert words in log
    if way != "execution_timeout" or airflow.version >= (3,):
        # Airflow 2.11 ends the trigger itself when an execution_timeout is over, and says no more.
        assert "was last seen with status 'running'" in log


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_wait_that_is_marked_stays_as_it_was_marked(airflow: Deployment, ways: dict[str, str], state: str) -> None:
    way = f"marked_{state}"
    airflow.await_task("ends_of_waits", way, "deferred")
    mark(airflow, way, state)
    airflow.sandbox.finish(ways[way])
    polls = airflow.sandbox.count(path="/executions")
    until(lambda: airflow.sandbox.count(path="/executions") >= polls + 3, 600, "three polls")
    log = end_of(airflow, way, state)
    figures.info(
        "%s marked %s: log says that it keeps running: %s", airflow.version, state, "keeps running in TechFlow" in log
    )
    if airflow.version >= (3, 3):
        assert "The task was ended by a user" in log


def test_a_wait_that_is_cleared_waits_anew(airflow: Deployment, ways: dict[str, str]) -> None:
    airflow.await_task("ends_of_waits", "cleared", "deferred")
    mark(airflow, "cleared", "cleared")
    until(lambda: airflow.log("ends_of_waits", "cleared").count("Waiting for execution") >= 2, 600, "a second wait")
    airflow.sandbox.finish(ways["cleared"])
    end_of(airflow, "cleared", "success")


def test_a_wait_can_end_in_the_triggerer_with_the_same_result(airflow: Deployment, ways: dict[str, str]) -> None:
    airflow.await_task("ends_of_waits", "from_trigger", "deferred")
    finished = airflow.sandbox.finish(ways["from_trigger"]).finished_at
    log = end_of(airflow, "from_trigger", "success")
    (row,) = airflow.query("SELECT end_date FROM task_instance WHERE task_id = 'from_trigger'")
    logged = logged_at(log, ways["from_trigger"])
    figures.info("%s from_trigger: event to success %.2f s", airflow.version, (moment(row[0]) - logged).total_seconds())
    assert finished is not None
    results = airflow.query("SELECT key, value FROM xcom WHERE task_id = 'from_trigger'")
    # The other two are for the link and the page.
    named = {key for key, value in results if ways["from_trigger"] in xcom_text(value)}
    assert named == {"return_value", "techflow_link", "techflow_execution"}


def xcom_text(value: str) -> str:
    """Return a value of the database as text; Airflow 2 keeps bytes there."""
    return bytes.fromhex(value[2:]).decode() if value.startswith("\\x") else value


def test_a_triggerer_that_dies_is_replaced_and_an_end_during_the_outage_is_logged_at_once(
    airflow: Deployment, ways: dict[str, str]
) -> None:
    airflow.await_task("ends_of_waits", "outage", "deferred")
    airflow.programs["triggerer"].kill()
    airflow.sandbox.finish(ways["outage"])
    before = airflow.sandbox.count(path="/executions")
    time.sleep(3)
    assert airflow.sandbox.count(path="/executions") <= before + 1
    airflow.programs["triggerer"].start()
    end_of(airflow, "outage", "success")
    figures.info("%s outage: %d requests", airflow.version, airflow.sandbox.count(path="/executions") - before)


def test_a_second_triggerer_takes_over_from_one_that_dies(airflow: Deployment, ways: dict[str, str]) -> None:
    airflow.await_task("ends_of_waits", "handed_over", "deferred")
    airflow.start("triggerer-2", "triggerer")
    count = "SELECT count(*) FROM job WHERE job_type = 'TriggererJob' AND state = 'running'"
    until(lambda: int(airflow.query(count)[0][0]) >= 2, 600, "a second triggerer")
    time.sleep(5)
    airflow.programs["triggerer"].kill()
    airflow.sandbox.finish(ways["handed_over"])
    end_of(airflow, "handed_over", "success")
    assert LOOKED_UP in triggerer_log(airflow, "triggerer-2")
    assert airflow.sandbox.count(status=429) == 0
