"""What every process of Airflow loads as a plugin; it imports a web framework only when its pages are asked for."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from techflow_provider.compat import has_api_server


class TechFlowPlugin(AirflowPlugin):
    """Receives webhooks at `/techflow/webhooks/{conn_id}`."""

    name = "techflow"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Airflow reads it from the instance
        """The applications for the API server of Airflow 3."""
        if not has_api_server():
            return []
        from techflow_provider.webhooks.fastapi import app

        return [{"app": app, "url_prefix": "/techflow", "name": "TechFlow webhooks"}]

    @property
    def flask_blueprints(self) -> list[Any]:  # type: ignore[override]  # as above
        """The blueprints for the web server of Airflow 2."""
        if has_api_server():
            return []
        from techflow_provider.webhooks.flask import airflow_blueprint

        return [airflow_blueprint()]
