"""The certificates and proxies that the settings and the environment ask for, and what is wrong with them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import httpx

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.settings import Settings, is_proxy_url

HttpClient = TypeVar("HttpClient", httpx.Client, httpx.AsyncClient)

# Those of requests, which the rest of Airflow uses, and those of OpenSSL.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
# They wouldn't be sent back, and would only fill the memory.
NO_COOKIES = DefaultCookiePolicy(allowed_domains=())
SOCKS_EXTRA = "an HTTP proxy; for SOCKS, first: pip install 'airflow-provider-techflow[socks]'"


def open_http(kind: type[HttpClient], settings: Settings, transport: Any = None) -> HttpClient:
    """Return a client of httpx that uses the settings and the environment, or else a transport.

    :raises InvalidParameterError: a setting or a variable of the environment can't be used
    """
    if transport is not None:
        return kind(transport=transport)
    verify = ssl_context(settings)
    # The timeouts are set on each request. Redirects are not followed: the key must not go elsewhere.
    try:
        return kind(verify=verify, proxy=settings.proxy, cookies=CookieJar(NO_COOKIES))
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        problem = _proxy_problem(settings, error)
    # Not chained: the cause may show a proxy's password.
    raise problem


def ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return what verifies the server's certificate, and shows the client's.

    :raises InvalidParameterError: a file can't be read
    """
    paths = {"verify": settings.verify} if isinstance(settings.verify, str) else _certificates_in_environment()
    if paths and settings.verify:
        context = _trusting(paths)
    else:
        context = httpx.create_ssl_context(verify=bool(settings.verify), trust_env=False)
    if settings.client_cert:
        try:
            # Without a password, OpenSSL would ask for one on the terminal.
            password = settings.client_key_password or ""
            context.load_cert_chain(settings.client_cert, settings.client_key, lambda: password)
        except (OSError, ValueError) as error:
            received = f"{settings.client_cert!r} with the key {settings.client_key!r} ({error})"
            expected = "files in PEM format with the certificate and its key"
            raise InvalidParameterError("client_cert", received, expected) from error
    return context


def _certificates_in_environment() -> dict[str, str]:
    return {f"environment variable {name}": value for name in CA_VARIABLES if (value := os.environ.get(name))}


def _trusting(paths: Mapping[str, str]) -> ssl.SSLContext:
    context: ssl.SSLContext | None = None
    for name, path in paths.items():
        cafile, capath = (None, path) if Path(path).is_dir() else (path, None)
        try:
            if context is None:
                context = ssl.create_default_context(cafile=cafile, capath=capath)
            else:
                context.load_verify_locations(cafile, capath)
        except (OSError, ValueError) as error:
            expected = "a file of certificates in PEM format, or a directory of them"
            raise InvalidParameterError(name, f"{path!r} ({error})", expected) from error
    return context or ssl.create_default_context()


def _proxy_problem(settings: Settings, error: Exception) -> InvalidParameterError:
    """Return what is wrong, without a value: it may have a password."""
    named = {name: value for name, value in os.environ.items() if name.lower() in PROXY_VARIABLES and value}
    values = {f"environment variable {name}": value for name, value in named.items()}
    if settings.proxy:
        values = {"proxy": settings.proxy}
    for name, value in values.items():
        scheme, separator, _ = value.partition("://")
        received = f"a URL with the scheme {scheme!r}" if separator else "an invalid URL"
        if isinstance(error, ImportError) and scheme.startswith("socks"):
            return InvalidParameterError(name, received, SOCKS_EXTRA)
        if not is_proxy_url(value if separator else f"http://{value}"):
            return InvalidParameterError(name, received, "a URL such as http://proxy.example:3128 or socks5://…")
    variable = next((name for name in os.environ if name.lower() == "no_proxy"), "NO_PROXY")
    expected = "names and addresses separated by commas, and IPv6 addresses without brackets, such as ::1"
    return InvalidParameterError(f"environment variable {variable}", repr(os.environ.get(variable)), expected)
