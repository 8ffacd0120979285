"""The plugin that every process of Airflow loads; it imports a web framework only when its applications are served."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin
from airflow.providers.common.compat.sdk import conf

from techflow_provider.compat import has_api_server

PAGE_PREFIX = "/techflow-page"


class TechFlowPlugin(AirflowPlugin):
    """What this package adds to Airflow's web server.

    It receives webhooks at `/techflow/webhooks/{conn_id}`. In Airflow 3 it serves the state at `/techflow/state`,
    and from 3.1 on it adds *TechFlow* to the menu.
    """

    name: str | None = "techflow"

    @property
    def external_views(self) -> list[dict[str, str]]:  # type: ignore[override]  # Airflow reads it from the instance
        """The menu entry for the page in Airflow's frame, below the path at which Airflow is reached."""
        path = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
        place = {"destination": "nav", "category": "browse", "url_route": "techflow"}
        return [{"name": "TechFlow", "href": f"{path}{PAGE_PREFIX}/", **place}]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # as above
        """The applications for the API server of Airflow 3."""
        if not has_api_server():
            return []
        from techflow_provider.hooks.api_server import STATE_PATH
        from techflow_provider.state_server import app as state
        from techflow_provider.webhooks import fastapi as webhooks

        # The longer prefix first, since the first one that matches is taken.
        apps: list[dict[str, Any]] = [
            {"app": state.app, "url_prefix": STATE_PATH, "name": "TechFlow state"},
            {"app": webhooks.app, "url_prefix": "/techflow", "name": "TechFlow webhooks"},
        ]
        # Airflow 3.0 has no menu entries for plugins.
        if hasattr(AirflowPlugin, "external_views"):
            from techflow_provider.page import fastapi as page

            apps.append({"app": page.app, "url_prefix": PAGE_PREFIX, "name": "TechFlow page"})
        return apps

    @property
    def flask_blueprints(self) -> list[Any]:  # type: ignore[override]  # as above
        """The blueprints for the web server of Airflow 2."""
        if has_api_server():
            return []
        from techflow_provider.webhooks.flask import airflow_blueprint

        return [airflow_blueprint()]
