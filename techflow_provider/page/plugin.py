"""What every process of Airflow loads as a plugin; FastAPI is imported where the page is served, and nowhere else."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

PREFIX = "/techflow-page"


class TechFlowPagePlugin(AirflowPlugin):
    """Adds *TechFlow* to the menu of Airflow 3.1 and later; earlier versions know no external views."""

    name = "techflow_page"
    external_views = [  # noqa: RUF012  # Airflow's own kind of declaration
        {"name": "TechFlow", "href": f"{PREFIX}/", "destination": "nav", "category": "browse"}
    ]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]  # Airflow reads it from the instance
        """The page's application, where there is a menu that leads to it."""
        if not hasattr(AirflowPlugin, "external_views"):
            return []
        from techflow_provider.page.fastapi import app

        return [{"app": app, "url_prefix": PREFIX, "name": "TechFlow page"}]
