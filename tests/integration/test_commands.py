"""What Airflow's own commands make of the package: provider metadata, the connection's test, the DAGs' import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from techflow_provider import __version__
from techflow_provider.cli import main
from techflow_provider.sandbox import Sandbox
from tests.integration.conftest import AirflowProcess, Finished

pytestmark = pytest.mark.airflow
Command = Callable[..., Finished]


@pytest.fixture
def airflow(airflow_home: Path, airflow_process: AirflowProcess) -> Command:
    """Run Airflow's command line."""
    return airflow_process.command


def test_airflow_knows_the_provider(airflow: Command) -> None:
    done = airflow("providers", "get", "airflow-provider-techflow", "--full", "--output", "json")
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
    assert "techflow_provider.hooks.techflow.TechFlowHook" in done.stdout


def test_the_connections_test_succeeds_with_the_right_key(served: Sandbox, airflow: Command) -> None:
    done = airflow("connections", "test", "techflow_default")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Connection success!" in done.stdout


def test_the_connections_test_says_that_the_key_is_wrong_and_does_not_show_it(
    served: Sandbox, airflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"conn_type": "techflow", "host": served.base_url, "password": "wrong-key-4711"}
    monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(wrong))
    done = airflow("connections", "test", "techflow_default")
    assert "copy it again from TechFlow" in done.stdout + done.stderr
    assert "wrong-key-4711" not in done.stdout + done.stderr


def test_all_dags_are_imported_without_an_error(airflow: Command) -> None:
    done = airflow("dags", "list-import-errors", "--output", "json")
    assert "Traceback" not in done.stdout + done.stderr
    assert "techflow" not in done.stdout.lower(), done.stdout


@pytest.mark.filterwarnings("ignore")
def test_doctor_knows_whether_a_triggerer_runs(
    served: Sandbox, airflow_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from airflow.jobs.job import Job
    from airflow.utils.session import create_session

    assert main(["doctor"]) == 0
    assert "no triggerer is running" in capsys.readouterr().out
    with create_session() as session:
        session.add(Job(job_type="TriggererJob", state="running"))  # type: ignore[no-untyped-call]
    try:
        assert main(["doctor"]) == 0
        assert "a triggerer is running" in capsys.readouterr().out
    finally:
        # Airflow 2.11's `dag.test()` leaves deferred tasks to a triggerer that seems to run.
        with create_session() as session:
            session.query(Job).filter_by(job_type="TriggererJob").delete()
