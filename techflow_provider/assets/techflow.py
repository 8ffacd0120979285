"""Schedule a DAG on TechFlow's events, with Airflow 3: `DAG(schedule=techflow_asset("execution.completed"))`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote

from techflow_provider.compat import has_api_server

if TYPE_CHECKING:
    from airflow.sdk import Asset


def techflow_asset(
    events: str | Iterable[str],
    workflow_id: str | None = None,
    *,
    techflow_conn_id: str = "techflow_default",
    name: str | None = None,
    poll_interval: float = 15.0,
    spacing: float = 5.0,
) -> Asset:
    """Return an asset that is updated by each event; the update's extra holds the execution or workflow as it was read.

    The events follow from what the API lists, which is polled at once when a webhook arrives. What happened before the
    first poll is not reported.

    >>> dag = DAG("on_completion", schedule=techflow_asset("execution.completed", "wf_123"))

    :param events: one of the six documented names, or several (Webhook Events)
    :param workflow_id: the only workflow whose events count
    :param techflow_conn_id: connection of the type `techflow`
    :param name: the asset's name; by default it is built from the other parameters
    :param poll_interval: seconds between two polls while no webhook arrives
    :param spacing: seconds between two updates, since Airflow combines updates that it finds together into one DAG run
    :raises NotImplementedError: Airflow is older than version 3
    :raises InvalidParameterError: an event is not documented
    """
    if not has_api_server():
        raise NotImplementedError(
            "techflow_asset needs Airflow 3: older versions can't schedule a DAG on external events; "
            "a scheduled DAG can begin with TechFlowExecutionSensor instead"
        )
    from airflow.sdk import Asset, AssetWatcher

    from techflow_provider.triggers.techflow_events import TechFlowEventTrigger

    trigger = TechFlowEventTrigger(
        techflow_conn_id, events=events, workflow_id=workflow_id, poll_interval=poll_interval, spacing=spacing
    )
    place = [techflow_conn_id, *trigger.event_filter.events, *([workflow_id] if workflow_id else [])]
    uri = f"techflow://{'/'.join(quote(part, safe='') for part in place)}"
    watcher = AssetWatcher(name="techflow", trigger=trigger)
    return Asset(name=name or " ".join(["techflow", *place]), uri=uri, watchers=[watcher])
