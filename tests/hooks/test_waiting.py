"""Waiting with the hook in plain Python, as `docs/howto/hook.md` shows it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from techflow_provider.client import ExecutionTimeoutError
from techflow_provider.client.history import HistoryFilter
from techflow_provider.client.reading import ReadTerms, read_history
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Sandbox

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a rate budget of its own."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))


async def test_several_waits_in_one_event_loop_return_their_executions(
    techflow_sandbox: Sandbox, techflow_connection: str
) -> None:
    techflow_sandbox.plan(techflow_sandbox.add_workflow("one", id="wf_1"), seconds=0.0)
    ids = [techflow_sandbox.start("wf_1").id for _ in range(3)]
    ends = await asyncio.gather(*map(TechFlowHook().await_execution, ids))
    assert [each.id for each in ends] == ids
    assert {each.status for each in ends} == {"completed"}


async def test_a_wait_in_the_event_loop_ends_at_its_timeout(
    techflow_sandbox: Sandbox, techflow_connection: str
) -> None:
    techflow_sandbox.plan(techflow_sandbox.add_workflow("endless", id="wf_1"), seconds=3600)
    execution_id = techflow_sandbox.start("wf_1").id
    with pytest.raises(ExecutionTimeoutError, match=r"did not end within \d+(\.\d+)? s"):
        await TechFlowHook().await_execution(execution_id, poll_interval=0.05, timeout=0.2)


def test_a_synchronous_wait_returns_the_execution(techflow_sandbox: Sandbox, techflow_connection: str) -> None:
    techflow_sandbox.add_workflow("one", id="wf_1")
    execution_id = techflow_sandbox.start("wf_1").id
    hook = TechFlowHook()
    with hook.get_conn():
        assert hook.wait_for_execution(execution_id, poll_interval=0.1, timeout=600).status == "completed"


@pytest.mark.parametrize(("limit", "burst"), [(100, 6), (10_000, 6), (10_000, 1000)])
def test_the_first_poll_of_a_budget_is_sent_whatever_its_rate(
    techflow_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, limit: int, burst: int
) -> None:
    with techflow_sandbox.serve() as url:
        connection = {"conn_type": "techflow", "host": url, "password": techflow_sandbox.api_keys[0]}
        extra = {"requests_per_minute": limit, "burst": burst}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps({**connection, "extra": extra}))
        with TechFlowHook().get_conn() as client:
            wanted = HistoryFilter(everything=True)
            assert len(client.run(read_history(client.context, wanted, ReadTerms(10.0)))) == 0
    assert techflow_sandbox.count() == 1
