"""The connection's test tells the kinds of trouble apart, in words, each found over a socket."""

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

from techflow_provider.hooks.techflow import TechFlowHook
from techflow_provider.sandbox import Fault, Sandbox

KEY = "key-of-the-connection-tests"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a state of its own, and no proxy of this machine's."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Test a connection with a host and further fields."""

    def test(host: str, password: str = KEY, **extra: Any) -> tuple[bool, str]:
        connection = {"conn_type": "techflow", "host": host, "password": password, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_TECHFLOW_DEFAULT", json.dumps(connection))
        ok, words = TechFlowHook().test_connection()
        assert password not in words
        return ok, words

    return test


@pytest.fixture
def served() -> Iterator[Sandbox]:
    """A sandbox at `base_url`."""
    sandbox = Sandbox(api_keys=(KEY,))
    with sandbox.serve():
        yield sandbox


class Gate(BaseHTTPRequestHandler):
    """What stands in the way: it answers every request with one status."""

    status = 407

    def do_GET(self) -> None:
        """Refuse."""
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_CONNECT = do_GET  # noqa: N815  # the name that the base class calls

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def gate(context: ssl.SSLContext | None = None, status: int = 407) -> Iterator[int]:
    """Serve a gate, by TLS when a context is given; the value is its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Gate", (Gate,), {"status": status}))
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
    """A certificate that nobody trusts."""
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


def test_it_says_how_many_workflows_the_key_sees(tested, served):
    assert tested(served.base_url) == (True, f"TechFlow answered at {served.base_url}: the API key sees 0 workflows")


def test_a_wrong_key_is_told(tested, served):
    ok, words = tested(served.base_url, password="another-key-4711")
    assert not ok
    assert words.startswith("The trouble is the API key. GET /workflows returned 401")
    assert "copy it anew" in words
    assert "check the API key" not in words


def test_a_base_url_without_its_path_is_told(tested, served):
    ok, words = tested(served.base_url.removesuffix("/v2") + "/v9")
    assert not ok
    assert words.startswith("The trouble is the host. GET /workflows returned 404")


def test_a_page_in_place_of_the_api_is_told(tested, served):
    served.faults.add(Fault("html"))
    ok, words = tested(served.base_url)
    assert not ok
    assert words.startswith("The trouble is the host. GET /workflows returned 200: expected JSON")


def test_a_port_on_which_nothing_listens_is_told(tested):
    ok, words = tested(f"http://127.0.0.1:{free_port()}/v2")
    assert not ok
    assert words.startswith("The trouble is the network. GET /workflows: no connection")
    assert "name and port" in words


def test_a_name_that_does_not_exist_is_told(tested):
    ok, words = tested("http://no-such-host.invalid/v2")
    assert not ok
    assert words.startswith("The trouble is the network.")
    assert "not known to this machine" in words


def test_a_proxy_that_refuses_is_told(tested):
    with gate() as port:
        ok, words = tested("https://api.techflow.invalid/v2", proxy=f"http://me:proxy-password@127.0.0.1:{port}")
    assert not ok
    assert words.startswith("The trouble is the proxy.")
    assert "proxy-password" not in words


@pytest.mark.parametrize("given", ["connection", "environment"])
def test_a_proxy_that_is_not_there_is_told(tested, monkeypatch, given):
    proxy = f"http://127.0.0.1:{free_port()}"
    if given == "environment":
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("http_proxy", proxy)
    ok, words = tested("http://api.techflow.invalid/v2", **({"proxy": proxy} if given == "connection" else {}))
    assert not ok
    assert words.startswith("The trouble is the proxy.")


def test_a_gate_that_forbids_is_told(tested):
    with gate(status=403) as port:
        ok, words = tested(f"http://127.0.0.1:{port}/v2")
    assert not ok
    assert words.startswith("The trouble is the proxy. GET /workflows returned 403")


def test_a_certificate_that_is_not_trusted_is_told(tested, own_certificate):
    with gate(own_certificate) as port:
        ok, words = tested(f"https://localhost:{port}/v2")
    assert not ok
    assert words.startswith("The trouble is TLS.")
    assert "extra verify" in words


def test_a_host_that_speaks_no_tls_is_told(tested, served):
    ok, words = tested(served.base_url.replace("http://", "https://"))
    assert not ok
    assert words.startswith("The trouble is TLS.")
    assert "speaks TLS" in words


def test_a_rate_limit_is_told(tested, served):
    served.faults.add(Fault("status", status=429, retry_after="60"))
    ok, words = tested(served.base_url)
    assert not ok
    assert words.startswith("The trouble is the rate limit. GET /workflows returned 429")


def test_a_server_that_fails_is_told_after_one_request(tested, served):
    served.faults.add(Fault("status", status=503))
    ok, words = tested(served.base_url)
    assert not ok
    assert words.startswith("The trouble is TechFlow itself. GET /workflows returned 503")
    assert served.count() == 1


def test_a_field_that_cannot_be_used_is_told(tested):
    ok, words = tested("ftp://api.techflow.com")
    assert not ok
    assert words.startswith("The trouble is a field of the connection. host (the base URL): expected")
