"""`doctor` in broken set-ups: the verdict and the remedy of each; and what it learns from a page of the history."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from techflow_provider.client import Settings
from techflow_provider.client.models import USUAL_WORDS, StatusWords
from techflow_provider.commands import checks
from techflow_provider.commands.checks import Verdict
from techflow_provider.commands.learn import learn
from techflow_provider.sandbox import Fault

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("default")]
KEY = "key-of-the-learn-tests"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdicts(done: Any) -> dict[str, str]:
    return {each["check"]: each["verdict"] for each in done.json}


def finding(done: Any, check: str) -> dict[str, str]:
    found: dict[str, str] = next(each for each in done.json if each["check"] == check)
    return found


def test_a_sound_set_up_has_no_problem(served, techflow):
    done = techflow("doctor", "--output", "json")
    assert done.code == 0
    # This Airflow has no database.
    sound = ("versions", "state", "hosts", "connection", "techflow", "clock", "budget", "webhooks")
    assert verdicts(done) == {"triggerer": "warning", **dict.fromkeys(sound, "ok")}
    assert served.count() == 1
    assert techflow("doctor").out.endswith("0 problems, 1 warning in 9 checks\n")


def test_no_connection(techflow):
    done = techflow("doctor", "--output", "json")
    assert done.code == 1
    assert "which is not defined" in finding(done, "connection")["said"]
    assert "airflow connections add techflow_default" in finding(done, "connection")["said"]


def test_a_wrong_key(served, connect, techflow):
    connect(served.base_url, password="another-key-4711")
    done = techflow("doctor", "--output", "json")
    assert (done.code, verdicts(done)["techflow"]) == (1, "problem")
    assert finding(done, "techflow")["said"].startswith("the API key: GET /workflows returned 401")
    assert "copy it anew" in finding(done, "techflow")["remedy"]
    assert "another-key-4711" not in done.out


def test_a_wrong_path(served, connect, techflow):
    connect(served.base_url + "/v9")
    found = finding(techflow("doctor", "--output", "json"), "techflow")
    assert found["said"].startswith("the host: GET /workflows returned 404")


def test_a_page_that_is_not_techflows(served, techflow):
    served.faults.add(Fault("html"))
    found = finding(techflow("doctor", "--output", "json"), "techflow")
    assert found["said"].startswith("the host: GET /workflows: expected JSON")


def test_nobody_listens(connect, techflow):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        connect(f"http://127.0.0.1:{taken.getsockname()[1]}/v2")
        done = techflow("doctor", "--output", "json")
    assert done.code == 1
    assert finding(done, "techflow")["said"].startswith("the network:")


def test_a_state_that_cannot_be_written(served, techflow, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", str(tmp_path / "file" / "state.db"))
    done = techflow("doctor", "--output", "json")
    assert (done.code, verdicts(done)["state"], verdicts(done)["budget"]) == (1, "problem", "problem")
    assert "state_url" in finding(done, "state")["remedy"]


def test_a_state_url_that_names_no_store(served, techflow, monkeypatch):
    monkeypatch.setenv("AIRFLOW__TECHFLOW__STATE_URL", "ftp://user:state-secret@host/1")
    done = techflow("doctor", "--output", "json")
    assert (done.code, verdicts(done)["state"], served.count()) == (1, "problem", 0)
    assert verdicts(done).keys().isdisjoint({"techflow", "budget"})
    assert "state-secret" not in done.out


def test_the_rate_limit_is_used_up(served, techflow):
    served.faults.add(Fault("status", status=429, retry_after="30"))
    done = techflow("doctor", "--output", "json")
    assert finding(done, "techflow")["said"].startswith("the rate limit:")
    assert verdicts(done)["budget"] == "warning"


def test_a_receiver_that_is_on_is_told(served, connect, techflow):
    connect(served.base_url, webhook_secret="secret-of-the-webhooks")
    done = techflow("doctor", "--output", "json")
    assert "the receiver is on: /techflow/webhooks/" in finding(done, "webhooks")["said"]
    assert "secret-of-the-webhooks" not in done.out


def test_tasks_on_several_hosts_need_a_state_that_all_reach():
    warned = checks.spread(["CeleryExecutor"], in_file=True)
    assert (warned.verdict, "redis://" in warned.remedy) == (Verdict.WARNING, True)
    assert "CeleryExecutor may run" in warned.said
    assert checks.spread(["CeleryExecutor"], in_file=False).verdict is Verdict.OK
    assert checks.spread([], in_file=True).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("alive", "verdict", "remedy"), [(True, "ok", ""), (False, "warning", "airflow triggerer"), (None, "warning", "db")]
)
def test_a_triggerer_that_is_missing_is_told(alive, verdict, remedy):
    found = checks.triggerer(alive=alive)
    assert (found.verdict, remedy in found.remedy) == (verdict, True)


@pytest.mark.parametrize(("seconds", "verdict"), [(29, "ok"), (31, "warning"), (-31, "warning")])
def test_a_clock_that_is_off_is_told(seconds, verdict):
    found = checks.skew(NOW, NOW + timedelta(seconds=seconds))
    assert (found.verdict, f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'}" in found.said) == (
        verdict,
        True,
    )


@pytest.mark.parametrize(
    ("version", "verdict"), [("2.10.5", "warning"), ("2.11.0", "ok"), ("3.3.2", "ok"), ("4.0", "warning")]
)
def test_a_version_that_is_not_supported_is_told(version, verdict):
    assert checks.versions({"airflow": version}).verdict == verdict


def taught(body: Any, words: StatusWords = USUAL_WORDS) -> dict[str, tuple[str, str]]:
    response = httpx.Response(200, text=body if isinstance(body, str) else json.dumps(body))
    return {each.what: (each.met, each.taken_for) for each in learn(response, Settings(KEY, status_words=words))}


def test_a_page_teaches_names_words_and_times():
    page = {
        "data": [
            {"executionId": 7, "workflow": {"id": "wf_1"}, "state": "Brewing", "start_time": 1600000000, "by": "me"},
            {"executionId": 8, "workflow": {"id": "wf_1"}, "state": "execution.completed", "start_time": 1600000000},
        ],
        "next": "/v2/executions?page=2",
    }
    found = taught(page)
    assert found["answer"] == ("an object with data, next", "a list of 2 executions")
    assert found["next page"][0] == "/v2/executions?page=2"
    assert found["id"] == ("executionId in 2 of 2, such as a number: 7", "the execution's id")
    assert found["workflow_id"][0].startswith("workflow in 2 of 2")
    assert found["further fields"][0] == "by"
    assert found["status 'execution.completed'"] == ("in 1 of 2", "completed")
    assert "name it in completed_statuses or failed_statuses" in found["status 'Brewing'"][1]
    assert "unreadable" not in found
    assert taught(page, StatusWords(frozenset({"brewing"})))["status 'Brewing'"][1] == "completed"


@pytest.mark.parametrize(
    ("body", "what", "said"),
    [
        ("<html>", "answer", "nothing: expected JSON"),
        ({"runs": []}, "answer", "nothing: expected a list of executions"),
        ([{"id": "ex_1"}, 5], "unreadable", "an error, which ends the call: expected an execution with status"),
        ([], "id", "the execution's id"),
        (f'["{KEY}"]', "answer", "nothing"),
    ],
)
def test_a_page_that_cannot_be_read_is_told(body, what, said):
    found = taught(body)
    assert found[what][1].startswith(said)
    assert KEY not in str(found)


def test_doctor_learns_with_one_request(served, techflow):
    served.plan("wf_1", seconds=3600)
    techflow("trigger", "wf_1")
    asked = served.count()
    done = techflow("doctor", "--learn", "--output", "json")
    assert (done.code, served.count()) == (0, asked + 1)
    assert {each["what"] for each in done.json} >= {"answer", "id", "status", "status 'running'"}
    assert techflow("doctor", "--learn").out.startswith("WHAT")
