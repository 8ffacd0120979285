"""Proxies and TLS servers as users run them: Squid, tinyproxy, microsocks and OpenSSL, each from its package.

Run by `make network`, which needs them installed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Client, RetryPolicy, Settings, TransportError, UnauthorizedError
from techflow_provider.client.calls import raw
from techflow_provider.client.errors import ResponseError
from techflow_provider.client.transport import CA_VARIABLES
from tests.certificates import Authority
from tests.client.raw_server import response, serving
from tests.servers import Program, free_port, listens, until

KEY = "network-key-0123456789"
USER, PASSWORD = "user", "proxy-password-0123"
READY_SECONDS = 120.0
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *CA_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@dataclass(frozen=True)
class Proxy:
    """A proxy that asks for a password.

    :param scheme: of its URL
    :param port: of the loopback
    :param refused: a port to which it refuses to connect
    """

    scheme: str
    port: int
    refused: int | None = None

    def url(self, password: str = PASSWORD) -> str:
        """Its URL with a user and a password."""
        return f"{self.scheme}://{USER}:{password}@127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    """Ends what it contains after the last test."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that Squid's own user may read."""
    made = tmp_path_factory.mktemp("network")
    for each in (made, *made.parents[:2]):
        each.chmod(0o755)
    return made


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    """An authority that signs the servers' and the clients' certificates."""
    return Authority(folder)


def started(stack: ExitStack, folder: Path, name: str, port: int, *command: str) -> int:
    """Start a program, and return its port when it listens there."""
    binary = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/bin")
    assert binary, f"{command[0]} is not installed"
    log = folder / f"{name}.log"
    program = Program(name, (binary, *command[1:]), {**os.environ}, log)
    program.start()
    stack.callback(program.stop)
    until(lambda: listens(port), READY_SECONDS, f"{name} listens: {log}")
    return port


@pytest.fixture(scope="module")
def tls(stack: ExitStack, folder: Path, authority: Authority) -> int:
    """OpenSSL's server with a certificate of the authority; its port."""
    certificate, key = authority.issue("server")
    port = free_port()
    files = ("-cert", str(certificate), "-key", str(key))
    return started(
        stack, folder, "s_server", port, "openssl", "s_server", "-accept", str(port), *files, "-www", "-quiet"
    )


@pytest.fixture(scope="module")
def mutual_tls(stack: ExitStack, folder: Path, authority: Authority) -> int:
    """The same, and it requires a certificate of the client."""
    certificate, key = authority.issue("server2")
    port = free_port()
    files = ("-cert", str(certificate), "-key", str(key), "-CAfile", str(authority.file), "-Verify", "1")
    options = ("-verify_return_error", "-www", "-quiet")
    return started(stack, folder, "s_server2", port, "openssl", "s_server", "-accept", str(port), *files, *options)


@pytest.fixture(scope="module")
def squid(stack: ExitStack, folder: Path) -> Proxy:
    """Squid with a password; it refuses one port."""
    port, refused, passwords = free_port(), free_port(), folder / "passwords"
    encoded = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    passwords.write_text(f"{USER}:{encoded}\n")
    passwords.chmod(0o644)
    configuration = folder / "squid.conf"
    configuration.write_text(
        f"http_port 127.0.0.1:{port}\npid_filename none\ncache deny all\naccess_log none\ncache_log /dev/null\n"
        f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}\nauth_param basic children 1\n"
        f"acl refused port {refused}\nacl known proxy_auth REQUIRED\n"
        "http_access deny refused\nhttp_access allow known\nhttp_access deny all\nshutdown_lifetime 1 seconds\n"
    )
    started(stack, folder, "squid", port, "squid", "-N", "-f", str(configuration))
    return Proxy("http", port, refused)


@pytest.fixture(scope="module")
def tinyproxy(stack: ExitStack, folder: Path, tls: int, mutual_tls: int) -> Proxy:
    """Tinyproxy with a password; it opens tunnels to the TLS servers' ports only."""
    port, configuration = free_port(), folder / "tinyproxy.conf"
    configuration.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nBasicAuth {USER} {PASSWORD}\n"
        f"ConnectPort {tls}\nConnectPort {mutual_tls}\n"
    )
    started(stack, folder, "tinyproxy", port, "tinyproxy", "-d", "-c", str(configuration))
    return Proxy("http", port, free_port())


@pytest.fixture(scope="module")
def microsocks(stack: ExitStack, folder: Path) -> Proxy:
    """Microsocks with a password."""
    port = free_port()
    credentials = ("-u", USER, "-P", PASSWORD)
    started(stack, folder, "microsocks", port, "microsocks", "-i", "127.0.0.1", "-p", str(port), *credentials)
    return Proxy("socks5", port)


HTTP_PROXIES = ["squid", "tinyproxy"]
ALL_PROXIES = [*HTTP_PROXIES, "microsocks"]


@pytest.fixture
def proxy(request: pytest.FixtureRequest) -> Proxy:
    """The proxy that a test names."""
    found: Proxy = request.getfixturevalue(request.param)
    return found


def get(base_url: str, **settings: Any) -> str:
    """Send a GET, and return the response's text."""
    with Client(settings=Settings(KEY, base_url, **settings), retry=RetryPolicy(max_attempts=1)) as client:
        return client.send(raw("GET", "/", any_status=True)).text


def start(base_url: str, **settings: Any) -> Any:
    """Start an execution, which must not happen twice."""
    with Client(settings=Settings(KEY, base_url, **settings), retry=RetryPolicy(max_attempts=1)) as client:
        return client.workflows.execute("wf_1")


def refused_tunnel(base_url: str, proxy_url: str, authority: Authority) -> TransportError:
    """Return the error of a start through a proxy that refuses to connect."""
    with pytest.raises(TransportError, match=r"the proxy refused the request .*never reached the server") as caught:
        start(base_url, proxy=proxy_url, verify=str(authority.file))
    assert PASSWORD not in str(caught.value)
    assert caught.value.had_no_effect
    return caught.value


@pytest.mark.parametrize("proxy", ALL_PROXIES, indirect=True)
@pytest.mark.parametrize("place", ["connection", "environment"])
def test_a_proxy_with_a_password_is_used(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tls: int, proxy: Proxy, place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
    chosen = proxy.url() if place == "connection" else None
    assert "s_server" in get(f"https://127.0.0.1:{tls}", proxy=chosen, verify=str(authority.file))


def test_the_name_is_resolved_by_a_socks_proxy(authority: Authority, tls: int, microsocks: Proxy) -> None:
    url = microsocks.url().replace("socks5://", "socks5h://")
    assert "s_server" in get(f"https://localhost:{tls}", proxy=url, verify=str(authority.file))


@pytest.mark.parametrize("proxy", HTTP_PROXIES, indirect=True)
def test_plain_http_goes_through_a_proxy_with_a_password(proxy: Proxy) -> None:
    received: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        received.append(request)
        connection.sendall(response("content-length: 2", "connection: close", body=b"ok"))

    with serving(serve) as port:
        assert get(f"http://127.0.0.1:{port}", proxy=proxy.url()) == "ok"
    assert PASSWORD.encode() not in b"".join(received)
    assert b"proxy-authorization" not in b"".join(received).lower()


@pytest.mark.parametrize("proxy", HTTP_PROXIES, indirect=True)
def test_a_wrong_password_means_that_nothing_was_sent(authority: Authority, tls: int, proxy: Proxy) -> None:
    error = refused_tunnel(f"https://127.0.0.1:{tls}", proxy.url("wrong"), authority)
    assert "407" in str(error) or "401" in str(error)


# httpcore leaves the socket to the garbage collector when a SOCKS proxy refuses.
socket_is_left = pytest.mark.filterwarnings(
    "ignore:.*unclosed <socket", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@socket_is_left
def test_a_wrong_password_for_a_socks_proxy_means_that_nothing_was_sent(
    authority: Authority, tls: int, microsocks: Proxy
) -> None:
    with pytest.raises(TransportError, match="never reached the server"):
        start(f"https://127.0.0.1:{tls}", proxy=microsocks.url("wrong"), verify=str(authority.file))


@pytest.mark.parametrize("proxy", HTTP_PROXIES, indirect=True)
def test_a_refused_port_means_that_nothing_was_sent(authority: Authority, proxy: Proxy) -> None:
    error = refused_tunnel(f"https://127.0.0.1:{proxy.refused}", proxy.url(), authority)
    assert "403" in str(error)


def test_an_unreachable_server_behind_squid_means_that_nothing_was_sent(authority: Authority, squid: Proxy) -> None:
    error = refused_tunnel(f"https://127.0.0.1:{free_port()}", squid.url(), authority)
    assert "503" in str(error)


@socket_is_left
@pytest.mark.parametrize(
    "sent", [b"", b"\0", b"\x05\xff", b"\x05\x00\x05\x05\x00\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
def test_a_socks_proxy_that_sends_anything_else_never_sent_the_request(sent: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(sent)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TransportError, match="never reached the server"):
            start("http://127.0.0.1:1", proxy=f"socks5://127.0.0.1:{server.getsockname()[1]}")
        thread.join()


@socket_is_left
def test_an_unreachable_server_behind_a_socks_proxy_means_that_nothing_was_sent(microsocks: Proxy) -> None:
    with pytest.raises(TransportError, match="never reached the server"):
        start(f"http://127.0.0.1:{free_port()}", proxy=microsocks.url())


@pytest.mark.parametrize("proxy", HTTP_PROXIES, indirect=True)
def test_the_refusal_of_plain_http_is_a_refusal(proxy: Proxy) -> None:
    """Without a tunnel, a proxy's response looks like the server's; 407 is one before anything was done."""
    with pytest.raises(ResponseError) as caught:
        start("http://127.0.0.1:1", proxy=proxy.url("wrong"))
    assert caught.value.had_no_effect
    assert not isinstance(caught.value, UnauthorizedError) or caught.value.status_code == 401


@pytest.mark.parametrize("name", CA_VARIABLES)
def test_a_private_authority_is_trusted_by_each_variable(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tls: int, folder: Path, name: str
) -> None:
    path = authority.file
    if name == "SSL_CERT_DIR":
        path = folder / "hashed"
        path.mkdir(exist_ok=True)
        shutil.copy(authority.file, path)
        subprocess.run(["openssl", "rehash", str(path)], check=True)
    with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"https://127.0.0.1:{tls}")
    monkeypatch.setenv(name, str(path))
    assert "s_server" in get(f"https://127.0.0.1:{tls}")


@pytest.mark.parametrize("route", ["direct", *ALL_PROXIES])
def test_a_client_certificate_is_shown_on_each_route(
    request: pytest.FixtureRequest, authority: Authority, mutual_tls: int, route: str
) -> None:
    proxy = None if route == "direct" else request.getfixturevalue(route).url()
    certificate, key = authority.issue("client", "key-password")
    secrets = {"client_cert": str(certificate), "client_key": str(key), "client_key_password": "key-password"}
    base_url = f"https://127.0.0.1:{mutual_tls}"
    assert "s_server" in get(base_url, verify=str(authority.file), proxy=proxy, **secrets)
    with pytest.raises(TransportError):
        get(base_url, verify=str(authority.file), proxy=proxy)


@pytest.mark.parametrize("route", ["direct", "tinyproxy", "microsocks"])
def test_ipv6_is_reached_on_each_route(request: pytest.FixtureRequest, route: str) -> None:
    proxy = None if route == "direct" else request.getfixturevalue(route).url()
    serve: Callable[[socket.socket, bytes], None] = lambda connection, _: connection.sendall(  # noqa: E731
        response("content-length: 2", "connection: close", body=json.dumps([]).encode())
    )
    with serving(serve, "::1") as port:
        assert get(f"http://[::1]:{port}", proxy=proxy) == "[]"
