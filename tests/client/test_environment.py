"""Variables of the environment are honoured, and those that can't be used are named."""

from __future__ import annotations

import builtins
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from techflow_provider.client import AsyncClient, Client, InvalidParameterError, RetryPolicy, Settings, TransportError
from techflow_provider.client.transport import CA_VARIABLES, ssl_context
from tests.certificates import Authority
from tests.client.raw_server import response, serving, until_blank_line

KEY = "environment-key-0123456789"
ONCE = RetryPolicy(max_attempts=1)
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *CA_VARIABLES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


UNUSABLE = {
    "ALL_PROXY": ["socks://127.0.0.1:1080/", "socks4://127.0.0.1", "ftp://h", "http://[::1", "://", "http://h:port"],
    "all_proxy": ["socks://user:secret-of-the-proxy@127.0.0.1:1080/"],
    "HTTPS_PROXY": ["socks://127.0.0.1:1080/"],
    "http_proxy": ["tcp://u:secret-of-the-proxy@127.0.0.1:2375"],
    "NO_PROXY": ["localhost,[::1]", "[fe80::1]", "a,b:c:d", "\x7f"],
    "no_proxy": ["[::1]"],
    "SSL_CERT_FILE": ["/nonexistent", "/etc/hostname", "/proc/self/mem"],
    "SSL_CERT_DIR": ["/nonexistent"],
    "REQUESTS_CA_BUNDLE": ["/nonexistent/bundle.pem"],
    "CURL_CA_BUNDLE": ["/nonexistent/bundle.pem"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, kind: type[Any]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidParameterError, match=rf"^environment variable {name}: expected .*, got ") as caught:
        kind(KEY)
    assert caught.value.had_no_effect
    assert "secret-of-the-proxy" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


def test_a_proxy_of_the_connection_replaces_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")
    Client(settings=Settings(KEY, proxy="http://127.0.0.1:3128")).close()


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy", None])
def test_socks_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    original = builtins.__import__

    def without_socksio(module: str, *args: Any, **kwargs: Any) -> Any:
        if module == "socksio":
            raise ImportError(module)
        return original(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_socksio)
    if name:
        monkeypatch.setenv(name, "socks5://127.0.0.1:1080")
    settings = Settings(KEY, proxy=None if name else "socks5://127.0.0.1:1080")
    with pytest.raises(InvalidParameterError, match=r"pip install 'airflow-provider-techflow\[socks\]'") as caught:
        Client(settings=settings)
    assert caught.value.parameter == (f"environment variable {name}" if name else "proxy")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that only this test knows."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tls(authority: Authority) -> Iterator[str]:
    """A server with a certificate of the authority; the base URL."""
    yield from _serve_tls(authority, asks_for_certificate=False)


@pytest.fixture
def mutual_tls(authority: Authority) -> Iterator[str]:
    """The same, and it asks for a certificate of the client."""
    yield from _serve_tls(authority, asks_for_certificate=True)


def _serve_tls(authority: Authority, *, asks_for_certificate: bool) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    if asks_for_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.file)

    def handle(connection: socket.socket) -> None:
        with suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as secured:
            until_blank_line(secured)
            secured.sendall(response("content-length: 2", "connection: close", body=b"[]"))

    def accept(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=handle, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def list_workflows(base_url: str, **settings: Any) -> list[Any]:
    with Client(settings=Settings(KEY, base_url, **settings), retry=ONCE) as client:
        return client.workflows.list()


def test_an_unknown_authority_is_not_trusted(tls: str) -> None:
    with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED") as caught:
        list_workflows(tls)
    assert caught.value.had_no_effect


@pytest.mark.parametrize("name", CA_VARIABLES)
def test_an_authority_is_trusted_by_each_variable(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tls: str, name: str
) -> None:
    monkeypatch.setenv(name, str(authority.file))
    assert list_workflows(tls) == []


def test_several_variables_are_trusted_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: Authority, tls: str
) -> None:
    other = Authority(tmp_path)
    for name in CA_VARIABLES:
        monkeypatch.setenv(name, str(authority.file if name == "SSL_CERT_FILE" else other.file))
    assert list_workflows(tls) == []


@pytest.mark.parametrize("form", ["file", "directory"])
def test_an_authority_is_trusted_by_the_connection(tmp_path: Path, authority: Authority, tls: str, form: str) -> None:
    if form == "file":
        assert list_workflows(tls, verify=str(authority.file)) == []
    else:
        assert_directory(tmp_path, authority, tls)


def assert_directory(folder: Path, authority: Authority, tls: str) -> None:
    # OpenSSL finds certificates by the hash of their name.
    subject = x509.load_pem_x509_certificate(authority.file.read_bytes()).subject
    digest = hashes.Hash(hashes.SHA1())  # as OpenSSL does
    digest.update(_canonical(subject))
    name = f"{int.from_bytes(digest.finalize()[:4], 'little'):08x}.0"
    (folder / name).write_bytes(authority.file.read_bytes())
    assert list_workflows(tls, verify=str(folder)) == []


def _canonical(name: x509.Name) -> bytes:
    """Return a name of one attribute as OpenSSL hashes it: as lower-case UTF-8, and without the outer sequence."""
    (attribute,) = name
    value = str(attribute.value).lower().encode()
    oid = bytes.fromhex("0603550403")
    pair = oid + b"\x0c" + bytes([len(value)]) + value
    inner = b"\x30" + bytes([len(pair)]) + pair
    return b"\x31" + bytes([len(inner)]) + inner


@pytest.mark.parametrize("password", [None, "password-of-the-key"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_client_certificate_is_shown(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, mutual_tls: str, password: str | None, *, verify: bool
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
    certificate, key = authority.issue("client", password)
    secrets = {"client_key": str(key), "client_key_password": password}
    assert list_workflows(mutual_tls, client_cert=str(certificate), verify=verify, **secrets) == []


def test_a_certificate_and_its_key_may_be_in_one_file(authority: Authority, mutual_tls: str, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(path.read_bytes() for path in authority.issue("both")))
    assert list_workflows(mutual_tls, client_cert=str(both), verify=str(authority.file)) == []


def test_a_missing_client_certificate_is_an_error(authority: Authority, mutual_tls: str) -> None:
    with pytest.raises(TransportError):
        list_workflows(mutual_tls, verify=str(authority.file))


@pytest.mark.parametrize("wrong", ["password", "no password", "other key", "missing"])
def test_a_client_certificate_that_cannot_be_used_is_named_without_its_password(
    authority: Authority, wrong: str
) -> None:
    certificate, key = authority.issue("client", "password-of-the-key")
    _, other = authority.issue("other")
    password = {"password": "wrong-password-of-the-key", "other key": None, "missing": None}.get(wrong)
    file = {"other key": other, "missing": Path("/nonexistent.key")}.get(wrong, key)
    settings = Settings(KEY, client_cert=str(certificate), client_key=str(file), client_key_password=password)
    with pytest.raises(InvalidParameterError, match=r"^client_cert: expected files in PEM format") as caught:
        Client(settings=settings)
    assert "wrong-password" not in f"{caught.value!r}{settings!r}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client_key": "/key"}, "client_key: expected text, and a client_cert that it belongs to, got str"),
        ({"client_cert": 5}, "client_cert: expected text, and a client_cert that it belongs to, got int"),
    ],
)
def test_a_key_without_its_certificate_is_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        Settings(KEY, **settings)


def test_ipv6_is_reached() -> None:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(response("content-length: 2", body=b"[]"))

    with serving(serve, "::1") as port:
        assert list_workflows(f"http://[::1]:{port}") == []


@pytest.mark.parametrize("value", ["*", "::1", "localhost,127.0.0.1", ".example,127.0.0.1", " 127.0.0.1 , x"])
def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", value)
    address = "::1" if value == "::1" else "127.0.0.1"
    with serving(lambda it, _: it.sendall(response("content-length: 2", body=b"[]")), address) as port:
        assert list_workflows(f"http://{f'[{address}]' if ':' in address else address}:{port}") == []


def test_certificates_are_read_only_where_a_connection_is_encrypted() -> None:
    assert ssl_context(Settings("key")).get_ca_certs()
    assert not ssl_context(Settings("key", "http://127.0.0.1:1/v2")).get_ca_certs()
