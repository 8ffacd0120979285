"""The page in Airflow's API server: one route, for users who may read connections."""

from typing import Annotated, Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import (
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.api_fastapi.core_api.security import get_user, requires_access_connection
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse

from techflow_provider.page.content import render
from techflow_provider.page.database import collect

# By default, FastAPI would publish a description of the application.
app: FastAPI = FastAPI(title="TechFlow page", openapi_url=None, docs_url=None, redoc_url=None)


@app.get("/", dependencies=[Depends(requires_access_connection("GET"))])
def page(user: Annotated[Any, Depends(get_user)]) -> HTMLResponse:
    """Show what the user may see."""
    manager: Any = get_auth_manager()

    def is_visible(conn_id: str) -> bool:
        details = ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id))
        return bool(manager.is_authorized_connection(method="GET", details=details, user=user))

    def may_see(entity: str, dag_id: str) -> bool:
        details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
        access_entity = DagAccessEntity[entity]
        return bool(manager.is_authorized_dag(method="GET", access_entity=access_entity, details=details, user=user))

    html, headers = render(collect(is_visible, manager.get_authorized_dag_ids(user=user), may_see))
    return HTMLResponse(html, headers=headers)
