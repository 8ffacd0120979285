"""The shared state behind Airflow's API server, as a connection reaches it: its URL, and what signs the requests."""

from __future__ import annotations

import asyncio
import functools
import re
import ssl

import httpx
from airflow.providers.common.compat.sdk import conf

from techflow_provider import __version__
from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.parsing import quote
from techflow_provider.hooks.connection import TechFlowConnection
from techflow_provider.hooks.connection_cache import find_connection
from techflow_provider.state.components import Component
from techflow_provider.state.http import HttpStore
from techflow_provider.state.signing import DEPLOYMENT, Signer, derive_key

STATE_PATH = "/techflow/state"
SHORTEST_SECRET = 16


def api_server_state_url() -> str:
    """Return where the API server that Airflow's own processes use serves the state, whether or not it runs."""
    base_url = conf.get("api", "base_url", fallback="") or "/"
    default = f"{'http://localhost:8080' if base_url.startswith('/') else ''}{base_url.rstrip('/')}/execution/"
    # An edge worker may know no other URL, and derives the execution API's from it in this way.
    edge = (conf.get("edge", "api_url", fallback="") or "").replace("edge_worker/v1/rpcapi", "execution")
    url: str = conf.get("core", "execution_api_server_url", fallback="") or edge or default
    return url.rstrip("/").removesuffix("/execution") + STATE_PATH


def http_store(url: str, connection: TechFlowConnection) -> HttpStore:
    """Return the store behind an API server for the names of a connection's account; connects to nothing yet.

    :param url: where it serves the state
    :raises InvalidParameterError: the URL or `[techflow] state_secret` can't be used
    """
    try:
        parsed = httpx.URL(url)
        is_usable = bool(parsed.host) and not (parsed.userinfo or parsed.query or parsed.fragment)
    except httpx.InvalidURL:
        is_usable = False
    if not is_usable:
        # It may hold a password.
        received = "a URL with a user or a query" if re.search("[@?]", url) else quote(url)
        raise InvalidParameterError("[techflow] state_url", received, "https://api-server/techflow/state")
    return _http_store(url, _signer(connection), may_look_up=not _in_event_loop())


@functools.lru_cache(maxsize=64)
def _http_store(url: str, signer: Signer, *, may_look_up: bool) -> HttpStore:
    renew = functools.partial(_renewed, signer) if may_look_up else lambda: signer
    return HttpStore(url, signer, renew, _verify(), component=this_component().to_text())


@functools.cache
def this_component() -> Component:
    """Return what this process is, as the users of a store are shown; a fork is another process of the same kind."""
    from airflow.configuration import get_airflow_home
    from airflow.utils.net import get_hostname

    # The name under which Airflow's jobs are known.
    return Component.present(get_hostname(), get_airflow_home(), __version__)  # type: ignore[no-untyped-call]


def state_secret() -> str:
    """Return `[techflow] state_secret`, empty where there is none.

    :raises InvalidParameterError: it is too short
    """
    secret: str = conf.get("techflow", "state_secret", fallback="").strip()
    if secret and len(secret) < SHORTEST_SECRET:
        received = f"{len(secret)} characters"
        raise InvalidParameterError("[techflow] state_secret", received, f"at least {SHORTEST_SECRET} characters")
    return secret


def _signer(connection: TechFlowConnection) -> Signer:
    secret = state_secret()
    if secret:
        return Signer(DEPLOYMENT, derive_key(secret, DEPLOYMENT))
    settings = connection.settings
    return Signer(connection.conn_id, derive_key(settings.api_key, settings.account))


def _renewed(signer: Signer) -> Signer:
    """Return what signs now: the connection's API key may have been changed."""
    connection = None if signer.name == DEPLOYMENT else find_connection(signer.name)
    return signer if connection is None else _signer(connection)


def _in_event_loop() -> bool:
    """Whether this is a trigger, in which a connection can't be looked up by a call that blocks."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _verify() -> ssl.SSLContext | bool:
    """Return how to verify the API server, as Airflow's own client does (`[api] ssl_cert` and others)."""
    names = ("ssl_cert", "ssl_ca_file", "client_ssl_cert", "client_ssl_key")
    trusted, authority, certificate, key = (conf.get("api", name, fallback="") for name in names)
    if not (trusted or authority or certificate):
        return True
    context = httpx.create_ssl_context()
    for file in filter(None, (trusted, authority)):
        context.load_verify_locations(file)
    if certificate:
        context.load_cert_chain(certificate, key or None)
    return context
