"""Explain why TechFlow can't be used, and what to do about it: pure, from the error alone."""

from __future__ import annotations

import socket
import ssl
import zlib
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from techflow_provider.client.errors import (
    BadRequestError,
    BudgetTimeoutError,
    InvalidParameterError,
    NotFoundError,
    RateLimitError,
    ResponseError,
    TechFlowError,
    TransportError,
    UnauthorizedError,
    UnexpectedResponseError,
    chain,
)
from techflow_provider.client.settings import Settings
from techflow_provider.client.transport import ResponseLimitError

# An intermediary, such as a proxy, may return these instead of TechFlow.
INTERMEDIARY_STATUS = frozenset({403, 407, 451})


class Cause(StrEnum):
    """The part that prevents TechFlow from being used."""

    SETTINGS = "a field of the connection"
    KEY = "the API key"
    HOST = "the host"
    NETWORK = "the network"
    PROXY = "the proxy"
    TLS = "TLS"
    LIMIT = "the rate limit"
    BUDGET = "the rate budget"
    SERVER = "TechFlow itself"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why TechFlow can't be used.

    :param cause: the part that causes the problem
    :param message: the error's message
    :param remedy: what to do
    """

    cause: Cause
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"The problem is {self.cause}. {self.message}. {self.remedy}"


REMEDIES = {
    Cause.SETTINGS: "Correct what is named above.",
    Cause.KEY: "TechFlow does not accept the API key: copy it again from TechFlow into the connection's password.",
    Cause.HOST: "Something responds there, but not as TechFlow does: check the connection's host, which is the base "
    "URL with its path, such as https://api.techflow.com/v2.",
    Cause.NETWORK: "Check the name and port in the connection's host, and whether this machine may reach it.",
    Cause.PROXY: "Check the connection's extra proxy, its user and password, and HTTPS_PROXY and NO_PROXY in the "
    "environment.",
    Cause.TLS: "Check whether the host speaks TLS (https) on that port. If it uses a private certificate authority, "
    "name its certificate file in the connection's extra verify.",
    Cause.LIMIT: "The API key seems to be valid. Wait a minute; if it happens again, find out what else uses the key, "
    "and lower requests_per_minute.",
    Cause.BUDGET: "Nothing was sent, so nothing is known of the API key. Correct the shared state if it can't be used; "
    "otherwise, wait a minute and find out what else uses the key.",
    Cause.SERVER: "Try again later; if it persists, contact TechFlow's support.",
}
CAUSES: dict[type, Cause] = {
    InvalidParameterError: Cause.SETTINGS,
    UnauthorizedError: Cause.KEY,
    RateLimitError: Cause.LIMIT,
    BudgetTimeoutError: Cause.BUDGET,
    NotFoundError: Cause.HOST,
    BadRequestError: Cause.HOST,
    UnexpectedResponseError: Cause.HOST,
}
UNKNOWN_HOST = "This machine can't resolve the name in the connection's host: check its spelling, and DNS."


def diagnose(error: TechFlowError, *, through_proxy: bool = False) -> Diagnosis:
    """Return why TechFlow can't be used, given the error of a call.

    :param through_proxy: whether the call used a proxy (see `uses_proxy`)
    """
    causes = list(chain(error))
    if isinstance(error, TransportError):
        cause = _transport_cause(causes, through_proxy)
    elif isinstance(error, UnexpectedResponseError) and error.status_code in INTERMEDIARY_STATUS:
        cause = Cause.PROXY
    else:
        cause = next((CAUSES[kind] for kind in type(error).__mro__ if kind in CAUSES), Cause.SERVER)
    unknown_host = cause is Cause.NETWORK and any(isinstance(each, socket.gaierror) for each in causes)
    message = error.summary if isinstance(error, ResponseError) else str(error)
    return Diagnosis(cause, message.rstrip("."), UNKNOWN_HOST if unknown_host else REMEDIES[cause])


def uses_proxy(settings: Settings) -> bool:
    """Whether calls use a proxy, the connection's or the environment's."""
    if settings.proxy:
        return True
    url = urlsplit(settings.base_url)
    named = getproxies()
    return bool(named.get(url.scheme) or named.get("all")) and not proxy_bypass(url.hostname or "")


def _transport_cause(causes: list[BaseException], through_proxy: bool) -> Cause:
    def involves(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in causes)

    if involves(ssl.SSLError):
        return Cause.TLS
    if involves(httpx.ProxyError) or (through_proxy and involves(httpx.ConnectError, httpx.ConnectTimeout)):
        return Cause.PROXY
    return Cause.HOST if involves(httpx.RemoteProtocolError, zlib.error, ResponseLimitError) else Cause.NETWORK
