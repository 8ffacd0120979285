"""`TechFlowHttpOperator` does what the HTTP provider documents of `HttpOperator`, with our connection and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow.providers.http")

from airflow.providers.common.compat.sdk import AirflowException

from techflow_provider.client import InvalidParameterError, NotFoundError
from techflow_provider.operators.http import TechFlowHttpOperator
from techflow_provider.sandbox import Sandbox

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
KEY = "key-of-the-http-tests"
CONTEXT: Any = {"params": {"least": 2}}


@pytest.fixture(autouse=True)
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox with three workflows, and the default connection pointing to it."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    names = {"wf_1": "a", "wf_2": "b", "wf_3": "c"}
    sandbox = Sandbox(api_keys=(KEY,), workflows_at_start=names, limit=10_000)
    with sandbox.serve() as url:
        extra = {"requests_per_minute": 10_000, "burst": 1000}
        connection = {"conn_type": "techflow", "host": url, "password": KEY, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        yield sandbox


def execute(**parameters: Any) -> Any:
    operator = TechFlowHttpOperator(task_id="call", **parameters)
    try:
        return operator.execute(CONTEXT)
    finally:
        operator.hook.get_conn().close()


def test_the_text_of_the_response_is_the_result():
    assert json.loads(execute(endpoint="workflows/wf_1", method="GET"))["name"] == "a"


def test_the_response_filter_receives_the_context_and_returns_the_result():
    found = execute(
        endpoint="workflows",
        method="GET",
        response_filter=lambda response, params: [each["id"] for each in response.json()["workflows"]][
            params["least"] :
        ],
    )
    assert found == ["wf_3"]


def test_a_response_check_that_returns_false_fails_the_task():
    assert execute(endpoint="workflows", method="GET", response_check=lambda response: response.ok)
    with pytest.raises(AirflowException, match="Response check returned False"):
        execute(endpoint="workflows", method="GET", response_check=lambda response: "nothing" in response.text)


def test_pages_are_requested_until_the_pagination_function_returns_none(served):
    def following(response: Any) -> dict[str, Any] | None:
        name = response.json()["name"]
        return {"endpoint": f"workflows/wf_{'abc'.index(name) + 2}", "headers": {"x-page": "2"}} if name < "c" else None

    found = execute(
        endpoint="workflows/wf_1",
        method="GET",
        pagination_function=following,
        response_filter=lambda responses: [each.json()["name"] for each in responses],
    )
    assert found == ["a", "b", "c"]
    assert [each.path for each in served.requests] == [f"/workflows/wf_{number}" for number in (1, 2, 3)]


def test_data_and_headers_are_sent(served):
    data = json.dumps({"name": "made", "triggers": []})
    made = execute(
        endpoint="workflows",
        data=data,
        headers={"Content-Type": "application/json"},
        response_filter=lambda response: (response.status_code, response.json()["name"], response.request.headers),
    )
    assert made[1] == "made"
    assert "authorization" not in {name.lower() for name in made[2]}


def test_an_error_status_raises_a_techflow_error_unless_check_response_is_false():
    with pytest.raises(NotFoundError, match="GET /workflows/wf_9 returned 404"):
        execute(endpoint="workflows/wf_9", method="GET")
    options = {"check_response": False}
    status = execute(
        endpoint="workflows/wf_9",
        method="GET",
        extra_options=options,
        response_filter=lambda response: (response.status_code, response.reason, response.ok),
    )
    assert status == (404, "Not Found", False)


@pytest.mark.parametrize(
    "parameters",
    [
        {"http_conn_id": "http_default"},
        {"auth_type": object},
        {"retry_args": {}},
        {"request_kwargs": {"json": {}}},
        {"tcp_keep_alive": False},
        {"deferrable": True},
    ],
)
def test_an_unsupported_parameter_is_rejected_when_the_dag_is_parsed(parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        TechFlowHttpOperator(task_id="call", endpoint="workflows", **parameters)


def test_the_error_of_an_unsupported_parameter_names_the_supported_ones():
    with pytest.raises(InvalidParameterError, match=r"http_conn_id: expected one of endpoint, .* or techflow_conn_id"):
        TechFlowHttpOperator(task_id="call", endpoint="workflows", http_conn_id="http_default")


def test_an_unknown_method_is_rejected(served):
    with pytest.raises(InvalidParameterError, match="method: expected GET, POST"):
        execute(endpoint="workflows", method="BREW")
    assert served.count() == 0


def test_no_other_operator_loads_the_http_provider():
    code = "import sys, techflow_provider.operators.techflow as o, techflow_provider.sensors.techflow as s\n"
    code += "print([name for name in ('aiohttp', 'airflow.providers.http.operators.http') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
