"""The connection's form, defined once: as data for Airflow 3.2 and later, as widgets for earlier versions.

It imports only the standard library, since every Airflow process reads the provider's metadata.
"""

from __future__ import annotations

from typing import Any

DEFAULT_DASHBOARD_URL = "https://dashboard.techflow.com/executions/{execution_id}"


# The fields have no defaults of their own: the form would store them, and Airflow warns of short texts in each task.
NUMBERS = {"requests_per_minute": 100, "burst": 6, "timeout": 30}


def _text(label: str, description: str, **schema: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"], **schema}}


def _number(name: str, label: str, description: str, minimum: float, maximum: int) -> dict[str, Any]:
    kind = "integer" if isinstance(minimum, int) else "number"
    schema = {"type": [kind, "null"], "minimum": minimum, "maximum": maximum}
    return {"label": label, "description": f"{description} By default, {NUMBERS[name]}.", "schema": schema}


# JSON schemas of the fields in the connection's extra.
EXTRA_FIELDS: dict[str, dict[str, Any]] = {
    "requests_per_minute": _number(
        "requests_per_minute",
        "Requests per minute",
        "TechFlow's limit for this API key. Use a lower value if other applications use the same key.",
        *(1, 100_000),
    ),
    "burst": _number(
        "burst",
        "Burst",
        "Requests that may be sent at once after an idle period. They count towards the limit.",
        *(1, 10_000),
    ),
    "timeout": _number(
        "timeout",
        "Timeout in seconds",
        "How long to wait for a connection to TechFlow, and for a response.",
        *(0.1, 3600),
    ),
    "verify": _text(
        "Verify TLS certificates",
        "Empty to verify them, false, or the path of a file or directory with the certificates to trust.",
    ),
    "client_cert": _text(
        "Client certificate", "Path of a file in PEM format, when TechFlow or a gateway asks for one."
    ),
    "client_key": _text("Client key", "Path of the certificate's key, unless the certificate's file has it."),
    "client_key_password": _text("Password of the client key", "Decrypts the key.", format="password"),
    "proxy": _text(
        "Proxy",
        "URL of an HTTP or SOCKS proxy. By default, the environment's. The field is masked, since it may contain a "
        "password.",
        format="password",
    ),
    "account": _text(
        "Account",
        "A name for the TechFlow account, if several accounts with the same base URL share their state.",
    ),
    "completed_statuses": _text(
        "Additional words for completed",
        "Status words, separated by commas, that mean that an execution completed, in addition to the usual ones.",
    ),
    "failed_statuses": _text(
        "Additional words for failed",
        "Status words, separated by commas, that mean that an execution failed, in addition to the usual ones.",
    ),
    "history_query": _text(
        "Query of the history",
        "Sent with each poll of the execution history, such as limit=200&workflow_id={workflow_id}&since={since}; "
        "doctor --learn says which parameters TechFlow accepts.",
    ),
    "dashboard_url": _text(
        "Dashboard URL",
        "An execution's page in TechFlow's dashboard, with {execution_id} and {workflow_id} as placeholders. "
        f"By default, {DEFAULT_DASHBOARD_URL}.",
    ),
    "webhook_secret": _text(
        "Webhook secret",
        "whsec_ and a key in base64, or 16 characters or more; a second one after a space while it is replaced. "
        "Without a secret, no webhooks are received.",
        format="password",
    ),
}
FORM_BEHAVIOUR: dict[str, Any] = {
    "hidden-fields": ["schema", "login", "port", "extra"],
    "relabeling": {"password": "API key", "host": "Base URL"},
    "placeholders": {"password": "the API key from TechFlow", "host": "https://api.techflow.com/v2"},
}


def form_widgets() -> dict[str, Any]:
    """Return the fields as WTForms fields; only Airflow before 3.2 calls this, and has that package."""
    from flask_appbuilder.fieldwidgets import BS3PasswordFieldWidget, BS3TextFieldWidget
    from wtforms import IntegerField, StringField
    from wtforms.validators import Optional

    return {
        # A connection form with a field of another class has no fields at all.
        name: (IntegerField if spec["schema"]["type"][0] == "integer" else StringField)(
            spec["label"],
            description=spec["description"],
            widget=BS3PasswordFieldWidget() if spec["schema"].get("format") == "password" else BS3TextFieldWidget(),
            validators=[Optional()],
        )
        for name, spec in EXTRA_FIELDS.items()
    }
