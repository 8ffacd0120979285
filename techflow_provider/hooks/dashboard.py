"""The address of an execution in TechFlow's dashboard, made from the connection's template.

The reference names the dashboard's host and no page for an execution, so the path is an assumption that a connection's
`dashboard_url` corrects. It imports only the standard library, since the provider's metadata names the default.
"""

from __future__ import annotations

from string import Formatter
from urllib.parse import quote as percent_encode
from urllib.parse import urlsplit

from techflow_provider.client.errors import InvalidParameterError

DEFAULT_DASHBOARD_URL = "https://dashboard.techflow.com/executions/{execution_id}"
PLACEHOLDERS = frozenset({"execution_id", "workflow_id"})


def check_dashboard_url(value: object) -> str:
    """Return a template of an execution's address.

    :raises InvalidParameterError: it is no http or https URL, or has another placeholder than `{execution_id}` and
        `{workflow_id}`
    """
    expected = f"a URL such as {DEFAULT_DASHBOARD_URL}, in which {{execution_id}} and {{workflow_id}} stand for the ids"
    if not isinstance(value, str):
        raise InvalidParameterError("dashboard_url", type(value).__name__, expected)
    try:
        places = list(Formatter().parse(value))
        url = urlsplit(value)
    except ValueError as error:
        raise InvalidParameterError("dashboard_url", f"{value[:200]!r} ({error})", expected) from error
    odd = any(name is not None and (name not in PLACEHOLDERS or form or change) for _, name, form, change in places)
    if odd or url.scheme not in ("http", "https") or not url.hostname or "{" in url.netloc or "@" in url.netloc:
        raise InvalidParameterError("dashboard_url", repr(value[:200]), expected)
    return value


def dashboard_link(template: str, *, execution_id: str | None = None, workflow_id: str | None = None) -> str | None:
    """Return the address of an execution, or None when the template wants an id that is not known."""
    known = {"execution_id": execution_id, "workflow_id": workflow_id}
    wanted = [name for _, name, _, _ in Formatter().parse(template) if name]
    if any(known[name] is None for name in wanted):
        return None
    return template.format(**{name: percent_encode(known[name] or "", safe="") for name in wanted})
