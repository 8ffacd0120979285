"""Where a process keeps the state: what the setting says, or what it observes of its Airflow."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from techflow_provider.client import InvalidParameterError, Settings
from techflow_provider.hooks import state
from techflow_provider.hooks.api_server import api_server_state_url
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.state import Observation, choice, choose, observe, open_state, served_store
from techflow_provider.state.sqlite import SqliteStore
from techflow_provider.state.store import Write

CONNECTION = TechFlowConnection("techflow_default", Settings("key-of-the-state-tests", "http://a.example"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a home and decisions of its own."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    state._choice.cache_clear()
    state._open.cache_clear()
    state._announce.cache_clear()
    return tmp_path


def location() -> str:
    return open_state(CONNECTION).store.location


@pytest.mark.parametrize(
    ("observed", "kind"),
    [
        # dag.test(), `airflow dags test`, pytest, `airflow standalone`: SQLite allows for no second host.
        (Observation("sqlite"), "file"),
        (Observation("sqlite", has_file=False), "file"),
        (Observation("sqlite", api_server="http://api:8080/execution/"), "file"),
        # The command line in a worker's container, which has no database of its own.
        (Observation("sqlite", has_file=False, api_server="http://api:8080/execution/"), "api-server"),
        # Airflow 2, and the API server, the scheduler and the command line of Airflow 3.
        (Observation("postgresql"), "metadata"),
        (Observation("mysql", api_server="http://api:8080/execution/"), "metadata"),
        # Tasks, triggers and callbacks of Airflow 3.
        (Observation("", api_server="http://api:8080/execution/"), "api-server"),
        (Observation(""), "api-server"),
    ],
)
def test_the_place_follows_from_what_a_process_observes(observed: Observation, kind: str) -> None:
    decided = choose(observed)
    assert decided.kind == kind
    assert decided.reason


class TestObservation:
    """What a process observes comes from Airflow's configuration and environment."""

    def test_a_database_is_known_by_its_kind(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://user:secret@host/airflow")
        assert observe().database == "postgresql"
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/airflow.db?timeout=5")
        assert observe() == Observation("sqlite", has_file=False)
        (tmp_path / "airflow.db").touch()
        assert observe() == Observation("sqlite", has_file=True)

    def test_a_task_process_of_airflow_3_is_known_by_what_airflow_puts_in_place_of_the_database(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "airflow-db-not-allowed:///")
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTION_API_SERVER_URL", "http://api:8080/execution/")
        assert observe() == Observation("", api_server="http://api:8080/execution/")

    def test_airflow_3_still_says_so(self):
        supervisor = pytest.importorskip("airflow.sdk.execution_time.supervisor", reason="Airflow 2 has none")
        code = (
            "from airflow.sdk.execution_time.supervisor import block_orm_access; block_orm_access(); "
            "from techflow_provider.hooks.state import observe; print(repr(observe().database))"
        )
        assert supervisor is not None
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "''"

    @pytest.mark.parametrize(
        ("setting", "value", "url"),
        [
            ("CORE__EXECUTION_API_SERVER_URL", "http://api:8080/execution/", "http://api:8080/techflow/state"),
            ("CORE__EXECUTION_API_SERVER_URL", "https://api/prefix/execution", "https://api/prefix/techflow/state"),
            ("EDGE__API_URL", "https://api/prefix/edge_worker/v1/rpcapi", "https://api/prefix/techflow/state"),
            ("API__BASE_URL", "https://airflow.example/prefix/", "https://airflow.example/prefix/techflow/state"),
            ("API__BASE_URL", "/", "http://localhost:8080/techflow/state"),
        ],
    )
    def test_the_api_server_is_where_tasks_find_it(self, setting, value, url, monkeypatch):
        monkeypatch.setenv(f"AIRFLOW__{setting}", value)
        assert api_server_state_url() == url

    @pytest.mark.parametrize(
        "url",
        [
            "https://",
            "https://user:secret@host/techflow/state",
            "https://user:secret@host:port/techflow/state",
            "https://user:some/secret@host/techflow/state",
            "https://host/techflow/state?secret",
            "https://host/techflow/state#here",
        ],
    )
    def test_a_url_of_none_is_refused_without_its_password(self, url, monkeypatch):
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", url)
        with pytest.raises(
            InvalidParameterError, match=r"\[techflow\] state_url: expected https://api-server"
        ) as caught:
            location()
        assert "secret" not in str(caught.value)


class TestSetting:
    """`[techflow] state_url` decides where it is set, in any case."""

    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("", "file"),
            ("file", "file"),
            ("File", "file"),
            ("/var/state.db", "file"),
            ("sqlite:////var/state.db", "file"),
            ("metadata", "metadata"),
            ("BROKER", "broker"),
            ("redis://host", "url"),
            ("PostgreSQL://host/db", "url"),
        ],
    )
    def test_the_kind_is_known(self, url, kind, monkeypatch):
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", url)
        assert choice().kind == kind

    def test_without_one_the_state_is_in_airflows_home_and_one_line_says_why(self, home, caplog):
        with caplog.at_level(logging.INFO, state.__name__):
            assert location() == location() == str(home / "techflow" / "state.db")
        (message,) = caplog.messages
        assert str(home) in message
        assert "SQLite" in message

    @pytest.mark.parametrize("folder", ["air flow", "$FOLDER", "${FOLDER}/x"])
    def test_airflows_home_is_expanded_as_airflow_does(self, folder, home, monkeypatch):
        monkeypatch.setenv("FOLDER", "expanded")
        monkeypatch.setenv("AIRFLOW_HOME", str(home / folder))
        expected = folder.replace("${FOLDER}", "expanded").replace("$FOLDER", "expanded")
        assert location() == str(home / expected / "techflow" / "state.db")

    def test_metadata_is_airflows_database(self, monkeypatch, tmp_path):
        monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/airflow.db")
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "metadata")
        assert location() == f"sqlite:///{tmp_path}/airflow.db"

    def test_an_api_server_offers_what_it_can_reach_itself(self, monkeypatch, home):
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "https://api.example/techflow/state")
        store = served_store()
        assert isinstance(store, SqliteStore)
        assert store.location == str(home / "techflow" / "state.db")

    @pytest.mark.parametrize(
        ("broker", "options", "expected"),
        [
            ("redis://:secret@redis:6379/1", {}, "redis://redis:6379/1"),
            ("redis+socket:///run/redis.sock", {"socket_timeout": "3"}, "unix:///run/redis.sock"),
            ("REDISS://redis/1", {"visibility_timeout": "3600", "socket_timeout": "3"}, "rediss://redis:6379/1"),
            (
                "sentinel://:secret@a:26379;sentinel://:secret@b:26380/2",
                {"master_name": "main", "sentinel_kwargs": json.dumps({"password": "secret"})},
                "redis+sentinel://a:26379,b:26380/main/2",
            ),
        ],
    )
    def test_broker_is_the_redis_of_celery(self, broker, options, expected, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", broker)
        for name, value in options.items():
            monkeypatch.setenv(f"AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__{name.upper()}", value)
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "broker")
        assert location() == expected

    @pytest.mark.parametrize("broker", ["amqp://user:secret@rabbit/", "sqs://", ""])
    def test_another_kind_of_broker_is_refused(self, broker, monkeypatch):
        monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", broker)
        monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "broker")
        with pytest.raises(InvalidParameterError, match=r"\[techflow\] state_url: expected .+Redis") as caught:
            location()
        assert "secret" not in str(caught.value)


def test_records_in_the_file_of_an_earlier_version_move_to_the_shared_store(home, monkeypatch, caplog):
    file = open_state(CONNECTION).store
    account = CONNECTION.settings.account
    file.update(f"{account}/attempts", "task", lambda *_: (Write("a record", 60.0), None))
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "metadata")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{home}/airflow.db")
    with caplog.at_level(logging.INFO, state.__name__):
        store, fallback, _ = open_state(CONNECTION)
        open_state(CONNECTION)
    assert [entry.value for entry in store.entries(f"{account}/attempts")] == ["a record"]
    assert fallback is file
    assert [message for message in caplog.messages if message.startswith("Copied")] == [
        f"Copied 1 records of an earlier version from {file.location} to {store.location}"
    ]
