"""The facets for OpenLineage, where its provider is installed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow.providers.openlineage")

from techflow_provider.client import Execution, Settings
from techflow_provider.lineage import execution_lineage

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error:::techflow_provider"),
]
HOOK: Any = SimpleNamespace(connection=SimpleNamespace(settings=Settings("key", "https://api.techflow.com/v2")))


def test_the_facet_names_the_execution_and_where_it_ran():
    facet = execution_lineage(HOOK, Execution.read({"id": "ex_1", "status": "completed"})).run_facets["externalQuery"]
    assert (facet.externalQueryId, facet.source) == ("ex_1", "https://api.techflow.com/v2")


def test_a_task_without_an_execution_has_no_facet():
    assert execution_lineage(HOOK, None).run_facets == {}
