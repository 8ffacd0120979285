"""The TechFlow page: who may see it, what it shows, and that all of it is escaped."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
from airflow.plugins_manager import AirflowPlugin

from techflow_provider.client.models import ExecutionState
from techflow_provider.hooks.api_server import this_component
from techflow_provider.hooks.state import open_state
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.page.content import (
    ConnectionView,
    Content,
    ExecutionView,
    TaskView,
    WaitView,
    bars,
    duration,
    execution_view,
    merge,
    render,
)
from techflow_provider.plugin import TechFlowPlugin
from techflow_provider.state.budget import RequestClass
from techflow_provider.state.learning import Cause
from techflow_provider.state.snapshot import Slice, Snapshot
from techflow_provider.submission.airflow import deployments
from techflow_provider.submission.attempts import AttemptStore
from techflow_provider.submission.records import AttemptRecord, Claim

pytestmark = [
    pytest.mark.airflow,
    # Airflow and its FastAPI warn about themselves when they are imported; ours would still fail the test.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
has_menu = pytest.mark.skipif(not hasattr(AirflowPlugin, "external_views"), reason="this Airflow has no external views")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'"


class Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name == "href"]


def snapshot(**changes: Any) -> Snapshot:
    used = {RequestClass.COMMAND: 3, RequestClass.POLL: 1}
    none = dict.fromkeys(used, 0)
    values = {
        "requests_per_minute": 100,
        "burst": 6,
        "used": used,
        "free": 5,
        "next_slot_seconds": none,
        "cooldown_seconds": 0.0,
        "waiting": 0,
        "history": (Slice(10, none), Slice(0, used)),
        "store": "file",
        "shared": True,
    }
    return Snapshot(**{**values, **changes})


def content(name: str = "x", **fields: object) -> Content:
    execution = execution_view(
        {"id": name, "workflow_id": name, "status": name, **fields}, TaskView(name, name, name), {}, NOW
    )
    start = AttemptRecord(name, f"{name}#1", name, name, NOW, 60.0)
    return Content(
        NOW,
        (ConnectionView(name, f"https://{name}", snapshot(cooldown_seconds=9.0, shared=False), name, True, (5.0,)),),
        (WaitView(TaskView(name, name, name), name, "triggerer", NOW - timedelta(hours=2, seconds=61)),),
        (execution,) if execution else (),
        ((start, TaskView(name, name)), (start, None)),
        more_waits=3,
    )


def test_foreign_text_is_escaped():
    page = Page(render(content(EVIL))[0])
    assert [each for each in page.tags if each in ("script", "img")] == ["script"]
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]


@pytest.mark.parametrize("url", ["javascript:alert(1)", "data:text/html,x", "JaVaScRiPt:alert(1)", " javascript:x", 5])
def test_a_url_that_is_not_http_gives_no_link(url):
    links = Page(render(content(url=url))[0]).links
    assert [link for link in links if link and not link.startswith("../dags/")] == []


def test_the_browser_may_load_nothing_but_the_pages_own_style_and_script():
    html, headers = render(content())
    policy = headers["content-security-policy"]
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert policy.startswith(f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; base-uri")
    assert f'<style nonce="{nonce}">' in html
    assert f'<script nonce="{nonce}">' in html
    assert nonce not in render(content())[0]
    assert headers["cache-control"] == "no-store"


def test_it_shows_cool_downs_waits_and_webhooks():
    html = render(content())[0]
    for words in (
        "<strong>4 of 100</strong>",
        "Cool-down:",
        "Not shared:",
        "2 h 1 min",
        "and 3 more",
        "the last 5 s ago",
    ):
        assert words in html


def test_it_shows_what_was_learned_about_the_limit():
    learned = snapshot(uses_per_minute=60, cause=Cause.RATE, relaxed_seconds=300.0)
    view = ConnectionView("x", "https://x", learned, None, True, ())
    html = render(Content(NOW, (view,), (), ()))[0]
    assert "Learned:</strong> 60 of 100 requests a minute, bursts of 6: a 429 although" in html
    assert "in 5 min" in html


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "5 may be sent now"),
        ({"free": 0, "cooldown_seconds": 9.0}, "none may be sent now"),
        ({"free": 0, "next_slot_seconds": dict.fromkeys(RequestClass, 0.64)}, "the next may be sent in 0.6 s"),
        ({"free": 0}, "1 may be sent now, as a probe after a 429"),
    ],
)
def test_it_says_when_the_next_request_can_be_sent(changes, words):
    assert snapshot(**changes).outlook == words


def test_an_empty_page_says_so():
    html = render(Content(NOW, (), (), ()))[0]
    for words in ("no connection of the type techflow", "No task is waiting", "No task has started"):
        assert words in html


def test_the_highest_bar_fills_the_chart():
    low, high = bars(snapshot().history)
    assert (low.commands + low.polls, high.commands, high.polls) == (0, 45.0, 15.0)
    assert "<span>4 in 10 s</span>" in render(content())[0]


@pytest.mark.parametrize(("seconds", "words"), [(-1, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (90061, "1 d 1 h")])
def test_a_duration_is_human_readable(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("value", [{}, {"id": 5}, {"id": ""}])
def test_an_xcom_that_describes_no_execution_is_left_out(value):
    assert execution_view(value, TaskView("d", "r", "t"), {}, NOW) is None


@pytest.mark.parametrize(
    ("task", "url", "text"),
    [
        (TaskView("d", "manual__1+0", "t"), "../dags/d/runs/manual__1%2B0/tasks/t", "t"),
        (TaskView("d", "r", "a/b", 3), "../dags/d/runs/r/tasks/a%2Fb/mapped/3", "a/b [3]"),
        (TaskView("d", "r"), "../dags/d/runs/r", "callback of the run"),
    ],
)
def test_a_task_links_to_its_page_in_airflow_wherever_that_is_served(task, url, text):
    assert (task.url, str(task)) == (url, text)
    assert (
        f'<a href="../dags/d">d</a> / <a href="{url}">{text}</a>'
        in render(Content(NOW, (), (WaitView(task, "x", "worker", NOW),), ()))[0]
    )


def seen(task: str, status: str | None, minutes: int, workflow_id: str | None = "wf_1", **fields: Any) -> ExecutionView:
    at = NOW + timedelta(minutes=minutes)
    values = {"id": "ex_1", "workflow_id": workflow_id, "state": ExecutionState.RUNNING, "url": None, **fields}
    return ExecutionView(status=status, tasks=(TaskView("d", "r", task),), updated_at=at, **values)


def test_an_execution_has_one_row_with_its_latest_status_and_all_tasks():
    views = [
        seen("trigger", "running", 1, url="https://x"),
        seen("wait", "completed", 2, None),
        # What the state knows has no status.
        seen("trigger", None, 3),
    ]
    (one,) = merge(views)
    assert (one.id, one.workflow_id, one.status, one.url) == ("ex_1", "wf_1", "completed", "https://x")
    assert [each.task_id for each in one.tasks] == ["wait", "trigger"]


def test_executions_of_two_workflows_with_one_id_have_a_row_each():
    views = [seen("trigger", "failed", 1, "wf_1"), seen("trigger", "running", 2, "wf_2")]
    assert [(each.workflow_id, each.status) for each in merge(views)] == [("wf_2", "running"), ("wf_1", "failed")]


def add_dag(dag_id: str) -> None:
    """Write a DAG into Airflow's database, which lists those that users may see."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.merge(DagBundleModel(name="page-tests"))
        session.flush()
        session.merge(DagModel(dag_id=dag_id, bundle_name="page-tests"))  # type: ignore[no-untyped-call]  # Airflow's


@has_menu
def test_executions_of_earlier_attempts_and_unresolved_starts_are_shown(open_page, served):
    connection = TechFlowHook().connection
    store, site = open_state(connection).store, connection.settings.site
    name = f"{deployments()[0]}/dag/manual__1/start/-1".removeprefix("/")
    attempts = AttemptStore(store, site, name)
    attempts.claim("wf 1", "ex_of_an_earlier_attempt", Claim(f"{name}#1"))
    attempts.claim("wf 1", "ex_of_a_hook", Claim("direct/5"))
    attempts.claim("wf 1", "ex_of_another_deployment", Claim("another/dag/manual__1/start/-1/x/y#1"))
    lost = AttemptRecord("wf_lost", f"{name}#2", "", "", NOW, 60.0, lost=True)
    attempts.update(lambda _: lost)
    add_dag("dag")
    html = open_page("admin").text
    assert "ex_of_an_earlier_attempt" in html
    assert "ex_of_a_hook" in html
    assert "ex_of_another_deployment" not in html
    assert "wf_lost" in html
    assert '<a href="../dags/dag/runs/manual__1/tasks/start">start</a>' in html
    assert "a search of the history, or a person" in html


@has_menu
def test_what_endangers_a_guarantee_is_shown_with_the_connection(open_page, served):
    from airflow.jobs.job import Job
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    wait = Trigger("techflow_provider.triggers.techflow.TechFlowEventTrigger", {})
    job = Job()  # type: ignore[no-untyped-call]  # Airflow's
    job.hostname, job.job_type, wait.triggerer_id = this_component().host, "SchedulerJob", 5
    with create_session() as session:
        session.add(job)
    try:
        sound = open_page("admin").text
        with create_session() as session:
            session.add(wait)
        unused = open_page("admin").text
        with create_session() as session:
            session.merge(job).hostname = "another-host"
        spread = open_page("admin").text
    finally:
        with create_session() as session:
            session.delete(session.merge(wait))
            session.delete(session.merge(job))
    assert "One budget, exactly once, wake-ups: ok" in sound
    assert "Exactly once: ok" in unused
    assert "Warning (one budget, wake-ups):</strong> a triggerer has 1 wait, and no triggerer has used" in unused
    assert "Warning (one budget, exactly once, wake-ups):</strong> the state is a file on" in spread
    assert "and Airflow also runs on another-host. Leave [techflow] state_url empty, or" in spread


def test_an_airflow_without_external_views_gets_no_page(monkeypatch):
    monkeypatch.delattr(AirflowPlugin, "external_views", raising=False)
    assert "/techflow-page" not in [each["url_prefix"] for each in TechFlowPlugin().fastapi_apps]


@has_menu
def test_only_users_with_access_to_connections_get_the_page(open_page):
    assert [open_page(role).status_code for role in (None, "viewer", "user", "op", "admin")] == [
        401,
        403,
        403,
        200,
        200,
    ]
    assert [open_page("admin", path).status_code for path in ("/openapi.json", "/docs", "/redoc")] == [404, 404, 404]


@pytest.mark.parametrize(
    ("base_url", "path"),
    [("", ""), ("http://localhost:8080", ""), ("https://a.example/airflow/", "/airflow"), ("https://a/x/y", "/x/y")],
)
def test_the_menu_entry_is_below_the_path_at_which_airflow_is_reached(monkeypatch, base_url, path):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    (view,) = TechFlowPlugin().external_views
    assert view["href"] == f"{path}/techflow-page/"
    # With a route, Airflow embeds the page in its frame.
    assert view["url_route"] == "techflow"


def test_invisible_characters_are_shown_as_escapes():
    html = render(content("a\x1b[31m\u202eb\x85"))[0]
    assert r"a\u001b[31m\u202eb\u0085" in html
    assert not {"\x1b", "\u202e", "\x85"} & set(html)


@has_menu
def test_it_shows_the_connections_budget_and_asks_techflow_nothing(open_page, served, monkeypatch):
    hook = TechFlowHook()
    hook.list_workflows()
    hook.get_conn().close()
    broken = {"conn_type": "techflow", "password": "key-of-a-broken-one", "host": "ftp://x"}
    monkeypatch.setenv("AIRFLOW_CONN_BROKEN_ONE", json.dumps(broken))
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER", json.dumps({"conn_type": "http", "password": "key-of-another"}))
    monkeypatch.setenv("AIRFLOW_CONN_MISSPELT", json.dumps({"conn_type": "techflow", "hots": "key-of-a-misspelt-one"}))
    response = open_page("admin")
    assert "<h3>techflow_default</h3>" in response.text
    assert "<strong>1 of 10000</strong>" in response.text
    assert "broken_one" in response.text
    assert "another</h3>" not in response.text
    assert "key-of-" not in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert served.count() == 1
