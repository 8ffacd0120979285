"""The provider's metadata, which Airflow reads before it imports any other module of the package."""

from __future__ import annotations

from typing import Any

from techflow_provider.hooks.form import EXTRA_FIELDS, FORM_BEHAVIOUR

INTEGRATION = "TechFlow"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata; the keys are those of Airflow's `provider_info.schema.json`."""
    return {
        "package-name": "airflow-provider-techflow",
        "name": INTEGRATION,
        "description": "Create, start and await TechFlow workflows within the shared rate limit.",
        "integrations": [
            {"integration-name": INTEGRATION, "external-doc-url": "https://techflow.com", "tags": ["service"]}
        ],
        "operators": _modules("operators", "techflow", "http"),
        "sensors": _modules("sensors"),
        "hooks": _modules("hooks"),
        "triggers": _modules("triggers"),
        "notifications": ["techflow_provider.notifications.techflow.TechFlowNotifier"],
        "connection-types": [
            {
                "connection-type": "techflow",
                "hook-class-name": "techflow_provider.hooks.techflow.TechFlowHook",
                "hook-name": INTEGRATION,
                "ui-field-behaviour": FORM_BEHAVIOUR,
                "conn-fields": EXTRA_FIELDS,
            }
        ],
        "extra-links": ["techflow_provider.links.techflow.TechFlowLink"],
        # Read by Airflow 3.2 and later.
        "cli": ["techflow_provider.cli.get_airflow_commands"],
        "config": {
            "techflow": {
                "description": "Settings of the TechFlow provider.",
                "options": {
                    "poll_interval": POLL_INTERVAL,
                    "history_lag": HISTORY_LAG,
                    "state_url": STATE_URL,
                    "state_file_mode": STATE_FILE_MODE,
                    "state_secret": STATE_SECRET,
                    "webhook_url_tokens": WEBHOOK_URL_TOKENS,
                    "webhook_token_header": WEBHOOK_TOKEN_HEADER,
                    "deployment": DEPLOYMENT,
                },
            }
        },
    }


def _modules(layer: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"techflow_provider.{layer}.{name}" for name in names or ("techflow",)]
    return [{"integration-name": INTEGRATION, "python-modules": modules}]


POLL_INTERVAL = {
    "description": "Seconds between two polls of the execution history while tasks wait. One poll serves all waits of "
    "a triggerer, so the number of requests doesn't depend on the number of waits.",
    "version_added": "0.1.0",
    "type": "float",
    "example": "10",
    "default": "5",
}

WEBHOOK_URL_TOKENS = {
    "description": "Whether the webhook receiver accepts the secret as a token in a URL, which proxies may log.",
    "version_added": "0.2.0",
    "type": "boolean",
    "example": "False",
    "default": "True",
}

WEBHOOK_TOKEN_HEADER: dict[str, Any] = {
    "description": "A header in which webhooks contain their secret, or the HMAC-SHA256 of their body in hexadecimal, "
    "in addition to Authorization: Bearer and to the headers of Standard Webhooks, Svix, GitHub and Stripe.",
    "version_added": "0.2.0",
    "type": "string",
    "example": "X-TechFlow-Token",
    "default": None,
}

HISTORY_LAG = {
    "description": "Seconds after which a started execution certainly appears in the execution history. After a lost "
    "response, a start is retried only if the history has not shown the execution for this long.",
    "version_added": "0.1.0",
    "type": "float",
    "example": "300",
    "default": "120",
}

STATE_URL: dict[str, Any] = {
    "description": "Where processes share the rate budget of an API key and the records of started executions. Not "
    "set: in Airflow's own database, on Airflow 3 through its API server; in a file in AIRFLOW_HOME where that is "
    "SQLite. Or one of metadata (Airflow's database), broker (Celery's Redis), file, an absolute path, or a URL: "
    "https://api-server/techflow/state, redis:// in all its forms, postgresql:// or mysql://.",
    "version_added": "0.1.0",
    "type": "string",
    "sensitive": True,
    "example": "redis://redis.example:6379/0",
    "default": "",
}

STATE_FILE_MODE: dict[str, Any] = {
    "description": "The mode of the file with the shared state: 0600, or 0660 where several users of a host run tasks "
    "(run_as_user) and share the file as members of its folder's group.",
    "version_added": "0.2.0",
    "type": "string",
    "example": "0660",
    "default": "0600",
}

STATE_SECRET: dict[str, Any] = {
    "description": "Where an API server that serves the state doesn't know the connections, as with a secrets backend "
    "that only workers can read: a text of at least 16 characters, the same on both sides, that signs the requests in "
    "place of a key derived from the connection's API key.",
    "version_added": "0.2.0",
    "type": "string",
    "sensitive": True,
    "example": "",
    "default": "",
}

DEPLOYMENT = {
    "description": "Distinguishes Airflow deployments that share a state_url, so that tasks of the same DAG, run and "
    "name start an execution in each of them. By default, it is derived from the address of the metadata database "
    "(Airflow 2) or of the API server (Airflow 3), and from a fernet key in the environment. All components need the "
    "same value.",
    "version_added": "0.2.0",
    "type": "string",
    "example": "production",
    "default": "",
}
