"""Say what is wrong when TechFlow can't be used, and what to do about it: pure, from the error alone."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
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
)
from techflow_provider.client.settings import Settings

# What stands between us and TechFlow may answer with these in its place.
GATE_STATUS = frozenset({403, 407, 451})


class Cause(StrEnum):
    """What keeps TechFlow from being used, in a word or two."""

    SETTINGS = "a field of the connection"
    KEY = "the API key"
    HOST = "the host"
    NETWORK = "the network"
    PROXY = "the proxy"
    TLS = "TLS"
    LIMIT = "the rate limit"
    SERVER = "TechFlow itself"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong.

    :param trouble: where the trouble lies
    :param said: the error in its own words
    :param remedy: what to do
    """

    trouble: Cause
    said: str
    remedy: str

    def __str__(self) -> str:
        return f"The trouble is {self.trouble}. {self.said}. {self.remedy}"


REMEDIES = {
    Cause.SETTINGS: "Correct the field that is named.",
    Cause.KEY: "TechFlow does not accept the API key: copy it anew from TechFlow into the connection's password.",
    Cause.HOST: "Something answers there, but not as TechFlow does: check the connection's host, which is the base "
    "URL with its path, such as https://api.techflow.com/v2.",
    Cause.NETWORK: "Check the name and port in the connection's host, and whether this machine may reach it.",
    Cause.PROXY: "Check the connection's extra proxy, its user and password, and HTTPS_PROXY and NO_PROXY in the "
    "environment.",
    Cause.TLS: "Check whether the host speaks TLS (https) on that port. Where a certificate of your own is trusted, "
    "name its file in the connection's extra verify.",
    Cause.LIMIT: "The key is good as far as can be told. Wait a minute; when it comes back, see who else uses the "
    "key, and lower requests_per_minute.",
    Cause.SERVER: "Try again later; when it lasts, ask TechFlow's support.",
}
TROUBLES: tuple[tuple[tuple[type[TechFlowError], ...], Cause], ...] = (
    ((InvalidParameterError,), Cause.SETTINGS),
    ((UnauthorizedError,), Cause.KEY),
    ((RateLimitError, BudgetTimeoutError), Cause.LIMIT),
    ((NotFoundError, BadRequestError, UnexpectedResponseError), Cause.HOST),
)
UNKNOWN_HOST = "The name in the connection's host is not known to this machine: check its spelling, and DNS."


def diagnose(error: TechFlowError, *, through_proxy: bool = False) -> Diagnosis:
    """Return what an error of a call says about the way to TechFlow.

    :param through_proxy: whether the call went by a proxy (see `uses_proxy`)
    """
    trouble = _trouble(error, through_proxy)
    unknown = trouble is Cause.NETWORK and any(isinstance(each, socket.gaierror) for each in _causes(error))
    said = error.summary if isinstance(error, ResponseError) else str(error)
    return Diagnosis(trouble, said.rstrip("."), UNKNOWN_HOST if unknown else REMEDIES[trouble])


def uses_proxy(settings: Settings) -> bool:
    """Whether calls go by a proxy, the connection's or the environment's."""
    if settings.proxy:
        return True
    url = urlsplit(settings.base_url)
    named = getproxies()
    return bool(named.get(url.scheme) or named.get("all")) and not proxy_bypass(url.hostname or "")


def _trouble(error: TechFlowError, through_proxy: bool) -> Cause:
    if isinstance(error, TransportError):
        return _transport_trouble(list(_causes(error)), through_proxy)
    if isinstance(error, UnexpectedResponseError) and error.status_code in GATE_STATUS:
        return Cause.PROXY
    return next((trouble for kinds, trouble in TROUBLES if isinstance(error, kinds)), Cause.SERVER)


def _transport_trouble(causes: list[BaseException], through_proxy: bool) -> Cause:
    def came_of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in causes)

    if came_of(ssl.SSLError):
        return Cause.TLS
    if came_of(httpx.ProxyError) or (through_proxy and came_of(httpx.ConnectError, httpx.ConnectTimeout)):
        return Cause.PROXY
    return Cause.HOST if came_of(httpx.RemoteProtocolError, httpx.DecodingError) else Cause.NETWORK


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__
