"""`doctor` in broken setups: the severity and remedy of each; and how it interprets a page of the history."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import httpx
import pytest
from airflow import configuration, settings
from airflow.models.connection import Connection
from airflow.secrets import BaseSecretsBackend
from airflow.secrets.environment_variables import EnvironmentVariablesBackend

from techflow_provider.client import BudgetTimeoutError, Settings
from techflow_provider.client.models import USUAL_WORDS, StatusWords
from techflow_provider.commands import checks
from techflow_provider.commands.checks import infer, shared_file, shared_store
from techflow_provider.commands.console import read_connection
from techflow_provider.compat import has_api_server
from techflow_provider.hooks.diagnosis import diagnose
from techflow_provider.hooks.state import open_state
from techflow_provider.sandbox import Fault
from techflow_provider.state.components import Component, report
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("default")]
KEY = "key-of-the-learn-tests"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def severities(done: Any) -> dict[str, str]:
    return {each["check"]: each["severity"] for each in done.json}


def finding(done: Any, check: str) -> dict[str, str]:
    found: dict[str, str] = next(each for each in done.json if each["check"] == check)
    return found


def test_a_sound_set_up_has_no_problem(served, techflow):
    done = techflow("doctor", "--output", "json")
    assert done.code == 0
    sound = ("versions", "settings", "state", "connection", "techflow", "clock", "budget", "webhooks")
    found = severities(done)
    # This Airflow has no database, or that of other tests.
    assert found.pop("triggerer") in ("unclear", "warning")
    assert found == {**dict.fromkeys(sound, "ok"), **dict.fromkeys(("shared", "times"), "unclear")}
    assert served.count() == 1
    text = techflow("doctor").out
    assert "\n0 problems, " in text
    assert text.endswith(" unclear in 11 checks\n")


def test_a_missing_connection_is_a_problem(techflow):
    done = techflow("doctor", "--output", "json")
    assert done.code == 1
    assert "which is not defined" in finding(done, "connection")["message"]
    assert "airflow connections add techflow_default" in finding(done, "connection")["message"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("POLL_INTERVAL", "5s", "poll_interval"),
        ("POLL_INTERVAL", "-1", "expected seconds, above 0"),
        ("HISTORY_LAG", "soon", "history_lag"),
        ("FIRST_EVENT_DELAY", "-1", "first_event_delay"),
        ("WEBHOOK_URL_TOKENS", "perhaps", "webhook_url_tokens"),
        ("STATE_URL_CMD", "sh -c 'echo a-secret; exit 1'", "state_url: Cannot execute"),
    ],
)
def test_a_setting_that_cannot_be_read_is_a_problem(techflow, monkeypatch, name, value, words):
    monkeypatch.setenv(f"AIRFLOW__TECHFLOW__{name}", value)
    done = techflow("doctor", "--output", "json")
    assert (done.code, severities(done)["settings"]) == (1, "problem")
    assert words in finding(done, "settings")["message"]
    assert "Output" not in done.out


def test_the_connections_origin_is_named(served, techflow):
    found = finding(techflow("doctor", "--output", "json"), "connection")
    assert found["message"].startswith("techflow_default from the variable AIRFLOW_CONN_TECHFLOW_DEFAULT: http://")


class Vault(BaseSecretsBackend):
    """A secrets backend whose one connection is the sandbox's."""

    host = ""

    def get_connection(self, conn_id: str, *_: Any, **__: Any) -> Connection | None:
        """Return the connection."""
        return Connection(conn_id, "techflow", host=self.host, password="key-of-the-command-tests")


@pytest.mark.parametrize("text", ['{"conn_type": "techflow"', '{"conn_type": "techflow", "hots": "x"}', "a://b:c/d"])
def test_a_variable_that_airflow_passes_over_is_a_warning(served, techflow, monkeypatch, text):
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", text)
    missing = techflow("doctor", "--output", "json")
    assert [each["severity"] for each in missing.json if each["check"] == "connection"] == ["warning", "problem"]
    monkeypatch.setattr(Vault, "host", served.base_url)
    monkeypatch.setattr(configuration, "secrets_backend_list", [Vault(), EnvironmentVariablesBackend(), Vault()])
    shadowed, used = (each for each in techflow("doctor", "-o", "json").json if each["check"] == "connection")
    assert shadowed["message"].startswith("AIRFLOW_CONN_TECHFLOW_DEFAULT is neither JSON")
    assert shadowed["message"].endswith("and uses a secrets backend")
    assert used["message"].startswith("techflow_default from a secrets backend: http://")


def test_the_difference_of_techflows_clocks_is_shown_as_starts_have_measured_it(served, techflow, home):
    assert severities(techflow("doctor", "-o", "json"))["times"] == "unclear"
    connection = read_connection("techflow_default")
    store, site = open_state(connection).store, connection.settings.site
    for number, seconds in enumerate((95, 100, 105)):
        at = NOW + timedelta(hours=number)
        report = {"decision": "started", "sent_at": at.isoformat()}
        report |= {"started_at": (at + timedelta(seconds=seconds)).isoformat()}
        AttemptStore(store, site, f"task-{number}").keep(
            *[AttemptRecord("wf_1", "s", "", "", at, 60.0, execution_id=f"ex_{number}", report=report)] * 2
        )
    found = finding(techflow("doctor", "-o", "json"), "times")
    assert found["severity"] == "warning"
    assert found["message"].endswith("are 100 s ahead of its Date, by the last 3 starts")


def test_a_wrong_key_is_a_problem(served, connect, techflow):
    connect(served.base_url, password="another-key-4711")
    done = techflow("doctor", "--output", "json")
    assert (done.code, severities(done)["techflow"]) == (1, "problem")
    assert finding(done, "techflow")["message"].startswith("the API key: GET /workflows returned 401")
    assert "copy it again" in finding(done, "techflow")["remedy"]
    assert "another-key-4711" not in done.out


def test_a_wrong_path_is_reported_as_the_host(served, connect, techflow):
    connect(served.base_url + "/v9")
    found = finding(techflow("doctor", "--output", "json"), "techflow")
    assert found["message"].startswith("the host: GET /workflows returned 404")


def test_a_page_of_another_server_is_reported_as_the_host(served, techflow):
    served.faults.add(Fault("html"))
    found = finding(techflow("doctor", "--output", "json"), "techflow")
    assert found["message"].startswith("the host: GET /workflows: expected JSON")


def test_a_closed_port_is_reported_as_the_network(connect, techflow):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        connect(f"http://127.0.0.1:{taken.getsockname()[1]}/v2")
        done = techflow("doctor", "--output", "json")
    assert done.code == 1
    assert finding(done, "techflow")["message"].startswith("the network:")


def test_a_state_that_cannot_be_written_is_a_problem(served, techflow, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "file" / "state.db"))
    done = techflow("doctor", "--output", "json")
    assert (done.code, severities(done)["state"], severities(done)["budget"]) == (1, "problem", "problem")
    assert "one budget, exactly once and wake-ups aren't guaranteed" in finding(done, "state")["remedy"]


def test_an_invalid_state_url_is_a_problem_and_stops_all_requests(served, techflow, monkeypatch):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "ftp://user:state-secret@host/1")
    done = techflow("doctor", "--output", "json")
    assert (done.code, severities(done)["state"], served.count()) == (1, "problem", 0)
    assert severities(done).keys().isdisjoint({"techflow", "budget"})
    assert "state-secret" not in done.out


def test_a_429_is_reported_as_the_rate_limit(served, techflow):
    served.faults.add(Fault("status", status=429, retry_after="600"))
    done = techflow("doctor", "--output", "json")
    assert finding(done, "techflow")["message"].startswith("the rate limit:")
    assert severities(done)["budget"] == "warning"


def test_an_enabled_receiver_is_reported_without_its_secret(served, connect, techflow):
    connect(served.base_url, webhook_secret="secret-of-the-webhooks")
    done = techflow("doctor", "--output", "json")
    assert "the receiver is on, at /techflow/webhooks/" in finding(done, "webhooks")["message"]
    assert "secret-of-the-webhooks" not in done.out


HERE = Component("doctor", "host-1", "/opt/airflow", "boot-1", "0.2.0")
WORKER = Component("airflow celery", "host-2", "/opt/airflow", "boot-2", "0.2.0")
TRIGGERER = Component("airflow triggerer", "host-3", "/opt/airflow", "boot-3", "0.0.9")
SERVER = Component("airflow api-server", "host-4", "/opt/airflow", "boot-4", "0.2.0")
STORE = "postgresql://db/airflow"


@pytest.mark.parametrize(
    ("shared", "severity", "words"),
    [
        (shared_file("host-1", frozenset({"host-1"})), "ok", "runs on host-1 alone"),
        (shared_file("host-1", frozenset({"host-1", "host-2"})), "warning", "a file on host-1, and Airflow also runs"),
        (shared_file("host-1", frozenset({"host-2"})), "warning", "also runs on host-2"),
        (shared_file("host-1", frozenset()), "unclear", "has run yet that names its host"),
        (shared_file("host-1", None), "unclear", "can't be read"),
        (shared_store(STORE, HERE, (HERE, WORKER)), "ok", "is used by airflow celery on host-2"),
        (shared_store(STORE, HERE, (HERE,)), "unclear", "no other process has used postgresql://db/airflow"),
        (shared_store(STORE, SERVER, (SERVER, TRIGGERER)), "unclear", "no task has used postgresql://db/airflow"),
        (shared_store(STORE, SERVER, (SERVER, TRIGGERER, WORKER)), "ok", "is used by airflow celery on host-2"),
        (shared_store(STORE, HERE, (TRIGGERER,)), "ok", "is used by airflow triggerer on host-3"),
    ],
)
def test_each_guarantee_is_judged_by_the_hosts_and_components_that_are_observed(shared, severity, words):
    found = checks.guarantees(shared, ())
    each_one = ["one budget", "exactly once", "wake-ups"]
    assert [each.check for each in found] == (["shared"] if severity == "unclear" else each_one)
    assert all(any(name in f"{each.check} {each.message}" for each in found) for name in each_one)
    for each in found:
        assert (each.severity, words in each.message, bool(each.remedy)) == (severity, True, severity != "ok")


def test_a_store_that_may_lose_records_endangers_exactly_once_alone():
    found = checks.guarantees(shared_store(STORE, HERE, (WORKER,)), ["its maxmemory-policy is allkeys-lru"])
    assert [each.severity for each in found] == ["ok", "warning", "ok"]
    assert found[1].message == "its maxmemory-policy is allkeys-lru"
    assert "noeviction and appendonly to yes" in found[1].remedy


@pytest.mark.parametrize(
    ("waiting", "components", "severity", "words"),
    [
        (0, (WORKER,), "ok", "is used by"),
        (2, (WORKER, TRIGGERER), "ok", "is used by"),
        (2, (WORKER,), "warning", "a triggerer has 2 waits, and no triggerer has used"),
        (None, (WORKER, TRIGGERER), "ok", "is used by"),
        (None, (WORKER,), "unclear", "whether one has waits can't be read"),
    ],
)
def test_waits_in_a_triggerer_that_never_used_the_state_endanger_the_budget_and_wake_ups(
    waiting, components, severity, words
):
    waits = checks.triggerers(STORE, waiting, components)
    budget, once, wake_ups = checks.guarantees(shared_store(STORE, HERE, components), (), waits)
    assert (budget.check, budget.severity, words in budget.message) == ("one budget", severity, True)
    assert (once.severity, wake_ups.check, wake_ups.message) == ("ok", "wake-ups", budget.message)


@pytest.mark.parametrize(("waiting", "checked"), [(1, ["shared", "wake-ups"]), (None, ["shared"]), (0, ["shared"])])
def test_waits_in_a_triggerer_are_reported_where_nothing_else_has_used_the_state(waiting, checked):
    found = checks.guarantees(shared_store(STORE, HERE, ()), (), checks.triggerers(STORE, waiting, ()))
    assert [each.check for each in found] == checked


@contextmanager
def api_server() -> Iterator[str]:
    """Serve the state as Airflow's API server does, and return its URL."""
    import uvicorn
    from fastapi import FastAPI

    from techflow_provider.state_server.app import app

    outer = FastAPI()
    outer.mount("/techflow/state", app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(outer, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/execution/"
        server.should_exit = server.force_exit = True
        thread.join()


@pytest.mark.skipif(not has_api_server(), reason="Airflow 2 has no API server")
def test_a_process_with_airflows_database_tries_the_state_as_tasks_reach_it(served, techflow, monkeypatch, home):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "metadata")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{home}/airflow.db")
    with api_server() as url:
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", url)
        found = finding(techflow("doctor", "-o", "json"), "tasks")
        assert (found["severity"], "/techflow/state, and so does this" in found["message"]) == ("ok", True)
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_SECRET", "short")
        assert "at least 16 characters" in finding(techflow("doctor", "-o", "json"), "tasks")["message"]
        monkeypatch.delenv("AIRFLOW__TECHFLOW__STATE_SECRET")
    done = techflow("doctor", "-o", "json")
    assert (severities(done)["state"], severities(done)["tasks"]) == ("ok", "warning")
    assert "and this process can't: http://" in finding(done, "tasks")["message"]


def test_a_shell_in_a_task_of_airflow_3_says_what_it_can_not_read(techflow, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "airflow-db-not-allowed:///")
    done = techflow("doctor", "-o", "json")
    assert finding(done, "connection")["message"].endswith("Airflow's database is for Python tasks")
    assert "/techflow/state, which can be reached only with a connection" in finding(done, "state")["message"]


def test_it_runs_in_the_process_of_a_task_of_airflow_3(served, techflow, monkeypatch):
    from techflow_provider.commands.doctor import _origin

    supervisor = pytest.importorskip("airflow.sdk.execution_time.supervisor", reason="Airflow 2 has none")
    monkeypatch.setattr(settings, "Session", supervisor.BlockedDBSession)
    done = techflow("doctor", "-o", "json")
    assert (done.code, severities(done)["shared"], severities(done)["triggerer"]) == (0, "unclear", "unclear")
    of_a_task = import_module("airflow.sdk").Connection(conn_id="techflow_default", conn_type="techflow")
    monkeypatch.delenv("AIRFLOW_CONN_TECHFLOW_DEFAULT")
    assert _origin(of_a_task) == "Airflow's database or a secrets backend"


def test_a_request_that_was_not_sent_says_nothing_about_the_key():
    found = diagnose(BudgetTimeoutError("GET /workflows", 7.5, 1.0))
    assert (str(found.cause), "nothing is known of the API key" in found.remedy) == ("the rate budget", True)


def test_components_with_another_version_are_named(served, techflow):
    assert checks.other_versions(HERE, (HERE, WORKER)) is None
    # Where the state is, is logged once, and here by a command.
    techflow("budget")
    connection = read_connection("techflow_default")
    report(open_state(connection).store, connection.settings.account, TRIGGERER)
    found = finding(techflow("doctor", "-o", "json"), "components")
    assert found["severity"] == "warning"
    assert found["message"].endswith("airflow triggerer on host-3 (0.0.9)")


def test_many_hosts_are_counted():
    hosts = frozenset({f"pod-{number:02}" for number in range(20)})
    assert shared_file("host-1", hosts).message.endswith("pod-04 and 15 more")


@pytest.mark.parametrize(
    ("alive", "severity", "remedy"),
    [(True, "ok", ""), (False, "warning", "airflow triggerer"), (None, "unclear", "db")],
)
def test_a_missing_triggerer_is_a_warning(alive, severity, remedy):
    found = checks.triggerer(alive=alive)
    assert (found.severity, remedy in found.remedy) == (severity, True)


@pytest.mark.parametrize(("seconds", "severity"), [(29, "ok"), (31, "warning"), (-31, "warning")])
def test_a_clock_skew_above_thirty_seconds_is_a_warning(seconds, severity):
    found = checks.clock_skew(NOW, NOW + timedelta(seconds=seconds))
    assert (found.severity, f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'}" in found.message) == (
        severity,
        True,
    )


@pytest.mark.parametrize(
    ("version", "severity"), [("2.10.5", "warning"), ("2.11.0", "ok"), ("3.3.2", "ok"), ("4.0", "warning")]
)
def test_an_unsupported_version_is_a_warning(version, severity):
    assert checks.versions(version).severity == severity


def inferred(body: Any, words: StatusWords = USUAL_WORDS) -> dict[str, tuple[str, str]]:
    response = httpx.Response(200, text=body if isinstance(body, str) else json.dumps(body))
    inferences, _ = infer(response, httpx.Response(200, json=[]), Settings(KEY, status_words=words))
    return {each.subject: (each.observed, str(each.meaning)) for each in inferences}


def test_names_status_words_and_pages_are_inferred():
    page = {
        "data": [
            {"executionId": 7, "workflow": {"id": "wf_1"}, "state": "Brewing", "start_time": 1600000000, "by": "me"},
            {"executionId": 8, "workflow": {"id": "wf_1"}, "state": "execution.completed", "start_time": 1600000000},
        ],
        "next": "/v2/executions?page=2",
    }
    found = inferred(page)
    assert found["response"] == ("an object with data, next", "a list of 2 executions")
    assert found["next page"][0] == "/v2/executions?page=2"
    assert found["id"] == ("executionId in 2 of 2, such as a number: 7", "the execution's id")
    assert found["workflow_id"][0].startswith("workflow_id in 2 of 2")
    assert found["all fields"][0] == "executionId, workflow, state, start_time, by"
    assert found["status 'execution.completed'"] == ("in 1 of 2", "completed")
    assert "add it to completed_statuses or failed_statuses" in found["status 'Brewing'"][1]
    assert "unreadable" not in found
    assert inferred(page, StatusWords(frozenset({"brewing"})))["status 'Brewing'"][1] == "completed"


FLOWS = [{"key": "f1", "title": "Hourly"}, {"key": "f2", "title": "Nightly"}]
OTHER_RUNS: list[dict[str, Any]] = [
    {"runUid": "a", "flow": {"ref": "f1"}, "phase": "done", "beganAt": 1_600_000_000_000, "ended": 1_600_000_001_000},
    {
        "runUid": "b",
        "flow": {"ref": "f1"},
        "phase": "revoked",
        "beganAt": 1_600_000_000_000,
        "ended": 1_600_000_002_000,
    },
    {"runUid": "c", "flow": {"ref": "f2"}, "phase": "broken", "beganAt": 1_600_000_000_000, "ended": 1_600_000_002_000}
    | {"problem": "disk full"},
]
OTHER_NAMES = {
    "workflow.id": "key",
    "workflow.name": "title",
    "execution.id": "runUid",
    "execution.workflow_id": "flow.ref",
    "execution.status": "phase",
    "execution.started_at": "beganAt",
    "execution.finished_at": "ended",
    "execution.error": "problem",
}


def learned(runs: list[dict[str, Any]], flows: Any, **settings: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """Return what is unclear, and the settings to add."""
    page, workflows = (httpx.Response(200, json=each) for each in (runs, flows))
    inferences, extra = infer(page, workflows, Settings(KEY, **settings))
    return {each.subject: each.observed for each in inferences if str(each.meaning).startswith("unclear")}, extra


def test_other_names_and_words_are_proposed_where_names_and_values_show_them():
    unclear, extra = learned(OTHER_RUNS, FLOWS)
    assert extra == {"fields": OTHER_NAMES, "completed_statuses": "done", "failed_statuses": "broken"}
    # It has an end and no error, which isn't a success.
    assert unclear == {"status 'revoked'": "in 1 of 3"}


def test_settings_that_exist_are_kept_and_completed():
    some = {"workflow.id": "key", "execution.id": "runUid"}
    words = StatusWords(frozenset({"all_good"}), frozenset({"broken"}))
    _, extra = learned(OTHER_RUNS, FLOWS, field_names=tuple(some.items()), status_words=words)
    assert extra == {"fields": OTHER_NAMES, "completed_statuses": "all_good, done"}
    assert learned(OTHER_RUNS, FLOWS, field_names=tuple(OTHER_NAMES.items()), status_words=words)[1].keys() == {
        "completed_statuses"
    }


@pytest.mark.parametrize(
    ("change", "flows", "subject", "observed"),
    [
        ({"requestId": "{n}"}, FLOWS, "id", "runUid or requestId"),
        ({"runUid": "always the same"}, FLOWS, "id", "nothing"),
        ({}, FLOWS[:1], "workflow_id", "nothing"),
        ({}, "<html>", "workflow_id", "nothing"),
        ({"parent": {"flowRef": "f1"}}, FLOWS, "workflow_id", "flow.ref or parent.flowRef"),
        ({"state_of_line": "up"}, FLOWS, "status", "phase or state_of_line"),
        ({"phase": {"since": 5}}, FLOWS, "status", "nothing"),
        ({"beganAt": 3}, FLOWS, "started_at", "nothing"),
        ({"ended": "soon"}, FLOWS, "finished_at", "nothing"),
        ({"problem": "none, all is well"}, FLOWS, "error", "nothing"),
    ],
)
def test_what_the_rows_do_not_show_clearly_is_unclear_and_not_proposed(change, flows, subject, observed):
    runs = [
        run | {k: v.format(n=n) if isinstance(v, str) else v for k, v in change.items()}
        for n, run in enumerate(OTHER_RUNS)
    ]
    unclear, extra = learned(runs, flows)
    assert unclear[subject] == observed
    assert f"execution.{subject}" not in extra["fields"]


def test_one_row_does_not_show_which_field_is_the_id():
    assert learned(OTHER_RUNS[:1], FLOWS)[0]["id"] == "nothing"
    assert learned([], [])[1] == {}


@pytest.mark.parametrize(
    ("body", "subject", "meaning"),
    [
        ("<html>", "response", "nothing: expected JSON"),
        ({"runs": []}, "response", "nothing: expected a list of executions"),
        (
            [{"id": "ex_1"}, 5],
            "unreadable",
            "nothing, since they are left out: the row with the id 'ex_1': expected an",
        ),
        ([], "id", "unclear: the execution's id"),
        (f'["{KEY}"]', "response", "nothing"),
    ],
)
def test_an_unreadable_page_is_reported_without_the_key(body, subject, meaning):
    found = inferred(body)
    assert found[subject][1].startswith(meaning)
    assert KEY not in str(found)


def test_learning_takes_six_requests(served, techflow):
    served.plan("wf_1", seconds=3600)
    techflow("trigger", "wf_1")
    requests = served.count()
    done = techflow("doctor", "--learn", "--output", "json")
    assert (done.code, served.count()) == (0, requests + 6)
    assert {each["subject"] for each in done.json} >= {"response", "id", "status", "status 'running'"}
    assert techflow("doctor", "--learn").out.startswith("SUBJECT")


@pytest.mark.parametrize(
    ("honoured", "meaning"),
    [
        ((), "leave it empty"),
        (("limit",), "set the connection's extra history_query to limit=200"),
        (("status",), "leave it empty"),
        (("workflow_id", "since"), "history_query to workflow_id={workflow_id}&since={since}"),
    ],
)
def test_learning_tries_which_filters_are_honoured(served, techflow, honoured, meaning):
    served.history_filters = honoured
    for _ in range(2):
        techflow("trigger", "wf_1")
    done = techflow("doctor", "--learn", "--output", "json")
    (found,) = (each for each in done.json if each["subject"] == "history_query")
    assert meaning in found["meaning"]
    for name in ("limit", "status", "workflow_id", "since"):
        assert f"{name} is {'honoured' if name in honoured else 'ignored'}" in found["observed"]
