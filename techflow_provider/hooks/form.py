"""The connection's form, written once: as data for Airflow 3.2 and later, as widgets for the versions before.

It imports nothing but the standard library, since the provider's metadata is read by every Airflow process.
"""

from __future__ import annotations

from typing import Any

from techflow_provider.hooks.dashboard import DEFAULT_DASHBOARD_URL

# JSON schemas of the fields in the connection's extra.
EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "requests_per_minute": {
        "label": "Requests per minute",
        "description": "TechFlow's limit for this API key. Lower it where other applications use the same key.",
        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 100000, "default": 100},
    },
    "burst": {
        "label": "Burst",
        "description": "Requests that may leave at once after a pause; they count against the limit.",
        "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 10000, "default": 6},
    },
    "timeout": {
        "label": "Time-out in seconds",
        "description": "How long to wait for TechFlow to connect and to answer.",
        "schema": {"type": ["number", "null"], "minimum": 0.1, "maximum": 3600, "default": 30},
    },
    "verify": {
        "label": "Verify TLS certificates",
        "description": "true, false, or the path of a file with the certificates to trust.",
        "schema": {"type": ["string", "null"], "default": "true"},
    },
    "proxy": {
        "label": "Proxy",
        "description": "URL of an HTTP proxy; empty takes the environment's. It may hold a password, so it is masked.",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
    "completed_statuses": {
        "label": "Further words for completed",
        "description": "Status words, with commas between them, that mean that an execution completed, beside the "
        "usual ones.",
        "schema": {"type": ["string", "null"]},
    },
    "failed_statuses": {
        "label": "Further words for failed",
        "description": "Status words, with commas between them, that mean that an execution failed, beside the "
        "usual ones.",
        "schema": {"type": ["string", "null"]},
    },
    "dashboard_url": {
        "label": "Dashboard URL",
        "description": "The page of an execution in TechFlow's dashboard; {execution_id} and {workflow_id} stand for "
        "the ids.",
        "schema": {"type": ["string", "null"], "default": DEFAULT_DASHBOARD_URL},
    },
    "webhook_secret": {
        "label": "Webhook secret",
        "description": "16 characters or more, or whsec_ and a key; empty receives no webhooks.",
        "schema": {"type": ["string", "null"], "format": "password"},
    },
}

FORM_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "login", "port", "extra"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {"password": "the API key from TechFlow", "host": "https://api.techflow.com/v2"},
}


def form_widgets() -> dict[str, Any]:
    """Return the fields as WTForms fields; Airflow before 3.2 has the package, and calls this where it draws forms."""
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
    from wtforms import StringField

    return {
        name: StringField(
            spec["label"],
            description=spec["description"],
            widget=BS3PasswordFieldWidget() if spec["schema"].get("format") == "password" else BS3TextFieldWidget(),
            default=str(spec["schema"].get("default", "")),
        )
        for name, spec in EXTRA_FIELDS.items()
    }
