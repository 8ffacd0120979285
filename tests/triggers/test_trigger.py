"""A trigger is made again from what it serialized."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    "fields",
    [
        {"execution_id": "ex_1", "deadline": "2026-11-24T12:00:00+00:00", "poll_interval": 7.5},
        {"workflow_id": "wf_1", "started_after": "2026-11-24T12:00:00+00:00"},
    ],
)
def test_every_field_survives_serialization(fields: dict[str, object]) -> None:
    from techflow_provider.triggers.techflow import TechFlowExecutionTrigger

    trigger = TechFlowExecutionTrigger("other", **fields)  # type: ignore[arg-type]  # as the triggerer makes it
    path, kept = trigger.serialize()
    again = TechFlowExecutionTrigger(**json.loads(json.dumps(kept)))
    assert path == "techflow_provider.triggers.techflow.TechFlowExecutionTrigger"
    assert again.serialize() == (path, kept)
    assert kept["techflow_conn_id"] == "other"
    assert fields.items() <= kept.items()
