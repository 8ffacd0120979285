"""The connection's test distinguishes the causes of a failure; each is provoked over a socket."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import InvalidParameterError
from techflow_provider.hooks.diagnosis import Cause, diagnose
from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Fault, Sandbox

KEY = "key-of-the-connection-tests"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own state, and no proxy from the environment."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Test a connection with a host and additional fields."""

    def test(host: str, password: str = KEY, **extra: Any) -> tuple[bool, str]:
        connection = {"conn_type": "techflow", "host": host, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        ok, message = TechFlowHook().test_connection()
        assert password not in message
        return ok, message

    return test


@pytest.fixture
def served() -> Iterator[Sandbox]:
    """A sandbox at `base_url`."""
    sandbox = Sandbox(api_keys=(KEY,))
    with sandbox.serve():
        yield sandbox


class Gateway(BaseHTTPRequestHandler):
    """A server between us and TechFlow that responds to every request with one status."""

    status = 407

    def do_GET(self) -> None:
        """Respond."""
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815  # the name that the base class calls

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def gateway(context: ssl.SSLContext | None = None, status: int = 407) -> Iterator[int]:
    """Serve a gateway, with TLS if a context is given, and return its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Gateway", (Gateway,), {"status": status}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """An untrusted certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_success_reports_the_number_of_workflows(tested, served):
    assert tested(served.base_url) == (True, f"Connected to {served.base_url}: the API key can access 0 workflows")


def test_a_wrong_key_is_diagnosed(tested, served):
    ok, message = tested(served.base_url, password="another-key-4711")
    assert not ok
    assert message.startswith("The problem is the API key. GET /workflows returned 401")
    assert "copy it again" in message
    assert "check the API key" not in message


def test_a_wrong_path_is_diagnosed(tested, served):
    ok, message = tested(served.base_url.removesuffix("/v2") + "/v9")
    assert not ok
    assert message.startswith("The problem is the host. GET /workflows returned 404")


def test_a_web_page_instead_of_the_api_is_diagnosed(tested, served):
    served.faults.add(Fault("html"))
    ok, message = tested(served.base_url)
    assert not ok
    assert message.startswith("The problem is the host. GET /workflows returned 200: expected JSON")


def test_a_closed_port_is_diagnosed(tested):
    ok, message = tested(f"http://127.0.0.1:{free_port()}/v2")
    assert not ok
    assert message.startswith("The problem is the network. GET /workflows: no connection")
    assert "name and port" in message
    assert "https was assumed" not in message


def test_a_server_is_named_and_that_https_was_assumed(tested):
    port = free_port()
    _, message = tested(f"127.0.0.1:{port}/v2")
    named = f"the server at https://127.0.0.1:{port} (https was assumed: the host names no scheme)"
    assert f"the request never reached {named}" in message


def test_an_unknown_host_is_diagnosed(tested):
    ok, message = tested("http://no-such-host.invalid/v2")
    assert not ok
    assert message.startswith("The problem is the network.")
    assert "can't resolve the name" in message


def test_a_proxy_that_rejects_the_request_is_diagnosed(tested):
    with gateway() as port:
        ok, message = tested("https://api.techflow.invalid/v2", proxy=f"http://me:proxy-password@127.0.0.1:{port}")
    assert not ok
    assert message.startswith("The problem is the proxy.")
    assert "proxy-password" not in message


@pytest.mark.parametrize("given", ["connection", "environment"])
def test_an_unreachable_proxy_is_diagnosed(tested, monkeypatch, given):
    proxy = f"http://127.0.0.1:{free_port()}"
    if given == "environment":
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
    ok, message = tested("http://api.techflow.invalid/v2", **({"proxy": proxy} if given == "connection" else {}))
    assert not ok
    assert message.startswith("The problem is the proxy.")


def test_a_403_from_a_gateway_is_diagnosed(tested):
    with gateway(status=403) as port:
        ok, message = tested(f"http://127.0.0.1:{port}/v2")
    assert not ok
    assert message.startswith("The problem is the proxy. GET /workflows returned 403")


def test_an_untrusted_certificate_is_diagnosed(tested, own_certificate):
    with gateway(own_certificate) as port:
        ok, message = tested(f"https://localhost:{port}/v2")
    assert not ok
    assert message.startswith("The problem is TLS.")
    assert "extra verify" in message


def test_a_host_without_tls_is_diagnosed(tested, served):
    ok, message = tested(served.base_url.replace("http://", "https://"))
    assert not ok
    assert message.startswith("The problem is TLS.")
    assert "speaks TLS" in message


def test_a_429_is_diagnosed(tested, served):
    served.faults.add(Fault("status", status=429, retry_after="60"))
    ok, message = tested(served.base_url)
    assert not ok
    assert message.startswith("The problem is the rate limit. GET /workflows returned 429")


def test_a_server_error_is_diagnosed_after_one_request(tested, served):
    served.faults.add(Fault("status", status=503))
    ok, message = tested(served.base_url)
    assert not ok
    assert message.startswith("The problem is TechFlow itself. GET /workflows returned 503")
    assert served.count() == 1


def test_an_invalid_field_is_diagnosed(tested):
    ok, message = tested("ftp://api.techflow.com")
    assert not ok
    assert message.startswith("The problem is a field of the connection. host (the base URL): expected")


def test_an_invalid_field_of_a_named_connection_is_a_matter_of_its_settings():
    error = InvalidParameterError("connection 'tf', extra timeout", "0", "a number above 0")
    assert diagnose(error).cause is Cause.SETTINGS
