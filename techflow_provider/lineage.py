"""An execution's facets for OpenLineage, which is imported only where its provider is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from techflow_provider.client.models import Execution
    from techflow_provider.hooks.techflow import TechFlowHook


def execution_lineage(hook: TechFlowHook, execution: Execution | None) -> Any:
    """Return the lineage of a task with an execution: the standard facet of a run elsewhere, its id and where it ran.

    Airflow's OpenLineage provider asks for it, so that provider is there when this is called.
    """
    from airflow.providers.openlineage.extractors.base import OperatorLineage
    from openlineage.client.facet_v2 import external_query_run

    if execution is None:
        return OperatorLineage()
    facet = external_query_run.ExternalQueryRunFacet(execution.id, source=hook.connection.settings.base_url)
    return OperatorLineage(run_facets={"externalQuery": facet})
