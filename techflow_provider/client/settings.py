"""What a client needs to reach TechFlow: key, base URL, timeouts, limits. Checked once, shown without the key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import unquote

import httpx

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.models import FIELDS, USUAL_WORDS, StatusWords
from techflow_provider.client.parsing import Names, quote, shorten
from techflow_provider.state.store import budget_key

DEFAULT_BASE_URL = "https://api.techflow.com/v2"
LAST_PORT = 65535
LIMITS = ("timeout_seconds", "response_seconds", "max_response_bytes", "deadline_seconds")
NOT_VISIBLE_ASCII = re.compile(r"[^!-~]")
# Reading more would take seconds, and no message needs to quote it.
MAX_ESCAPES = 1_000_000
# How much is searched for the key at a time, and how many bytes may stand for one of its characters.
SEARCHED_BYTES = 1024 * 1024
ENCODED_BYTES = 32
JSON_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """How to reach TechFlow.

    >>> client = Client(settings=Settings("your_key", timeout_seconds=10))

    :param api_key: the key, sent as `Authorization: Bearer` (Authentication)
    :param base_url: base URL of the API (Base URL)
    :param timeout_seconds: limit of each network operation: to connect, to write, to read the next chunk
    :param response_seconds: limit of one whole request, however steadily its response arrives
    :param max_response_bytes: limit of one response's decoded body
    :param deadline_seconds: limit of one call with all its waits and retries
    :param verify: whether to verify TLS certificates, or a file or directory of those to trust
    :param proxy: URL of a proxy; None uses the environment's
    :param client_cert: file of a certificate that the server, or a proxy in front of it, asks for
    :param client_key: file of its key; None when the certificate's file has it
    :param client_key_password: decrypts the key
    :param status_words: further status words, when this TechFlow has any
    :param field_names: fields such as `execution.id`, each with its name in this TechFlow when that is another one
    :param account_name: distinguishes TechFlow accounts with one base URL whose users share their state
    :param history_query: the query of each poll of the history, where this TechFlow accepts one; values with
        `{workflow_id}` or `{since}` are sent only with polls that are for one workflow, or for what began since a time
    :param is_scheme_assumed: whether the base URL was given without `https://` or `http://`
    :raises InvalidParameterError: a value can't be used
    """

    api_key: str = field(repr=False)
    base_url: str = DEFAULT_BASE_URL
    timeout_seconds: float = 30.0
    response_seconds: float = 120.0
    max_response_bytes: int = 64 * 1024 * 1024
    deadline_seconds: float = 600.0
    verify: bool | str = True
    proxy: str | None = field(default=None, repr=False)
    client_cert: str | None = None
    client_key: str | None = None
    client_key_password: str | None = field(default=None, repr=False)
    status_words: StatusWords = USUAL_WORDS
    field_names: Names = ()
    account_name: str = ""
    history_query: tuple[tuple[str, str], ...] = ()
    is_scheme_assumed: bool = False

    def __post_init__(self) -> None:
        _check_api_key(self.api_key)
        object.__setattr__(self, "base_url", check_base_url("base_url", self.base_url))
        if self.proxy is not None and not is_proxy_url(self.proxy):
            # It may contain a password, which neither the message nor a cause may show.
            raise InvalidParameterError("proxy", "an invalid one", "a URL such as http://proxy.example:3128, or None")
        for name in ("client_cert", "client_key", "client_key_password"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value and self.client_cert):
                raise InvalidParameterError(name, type(value).__name__, "text, and a client_cert that it belongs to")
        check_positive(**{name: getattr(self, name) for name in LIMITS})

    @cached_property
    def account(self) -> str:
        """The name under which processes share what belongs to the key and base URL (see `budget_key`)."""
        return budget_key(self.base_url, self.api_key)

    @cached_property
    def site(self) -> str:
        """The name under which processes share what belongs to the TechFlow account, whatever its key is now."""
        return budget_key(self.base_url, f"account {self.account_name}")

    @property
    def server(self) -> str:
        """The server as errors name it."""
        url = httpx.URL(self.base_url)
        assumed = f" ({url.scheme} was assumed: the host names no scheme)" if self.is_scheme_assumed else ""
        return f"{url.scheme}://{url.netloc.decode()}{assumed}"

    @cached_property
    def names(self) -> dict[str, Names]:
        """The other names of executions' and of workflows' fields."""
        names: dict[str, Names] = dict.fromkeys(FIELDS, ())
        for usual, own in self.field_names:
            kind, field = usual.split(".")
            names[kind] += ((field, own),)
        return names

    def holds_key(self, content: bytes) -> bool:
        """Whether some bytes contain the key, plain or as JSON or a URL encodes it: a server may repeat it."""
        if content.count(b"\\") + content.count(b"%") > MAX_ESCAPES:
            return True
        searched = SEARCHED_BYTES + ENCODED_BYTES * len(self.api_key)
        return any(self._is_in(content[at : at + searched]) for at in range(0, len(content), SEARCHED_BYTES))

    def without_key(self, text: str, quoted: str, source: bytes) -> str:
        """Return the text of an error without its quote when the source of the quote contains the key.

        Shortening could have cut the key anywhere, so replacing the key alone would not be enough.

        :param quoted: the part of the text that quotes the source
        """
        if self.holds_key(source):
            return text.replace(quoted, "text that repeats the API key and is not shown")
        return text

    def _is_in(self, content: bytes) -> bool:
        # Without its null bytes, UTF-16 reads like ASCII.
        text = content.replace(b"\0", b"").decode(errors="replace")
        plain = JSON_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else escape[2], text)
        return any(self.api_key in form for form in (text, plain, unquote(text), unquote(plain)))


def _check_api_key(value: str) -> None:
    expected = "the API key as text without spaces, line breaks or other control characters"
    if not isinstance(value, str) or not value:
        raise InvalidParameterError("api_key", "nothing" if not value else type(value).__name__, expected)
    invalid = NOT_VISIBLE_ASCII.search(value)
    if invalid:
        # The key is secret, so the message shows the invalid character and its position alone.
        received = f"{len(value)} characters with {invalid[0]!a} at position {invalid.start() + 1}"
        raise InvalidParameterError("api_key", received, expected)


def check_base_url(parameter: str, value: str) -> str:
    """Return a base URL without its trailing slash.

    :raises InvalidParameterError: it isn't a plain http or https URL
    """
    expected = f"a URL such as {DEFAULT_BASE_URL}, without user, query or fragment"
    try:
        url = httpx.URL(value)
        # It is decoded when it is read.
        host = url.host
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise InvalidParameterError(parameter, quote(value), expected) from error
    if url.userinfo:
        raise InvalidParameterError(parameter, "a URL with user information", expected)
    malformed = "?" in str(url) or "#" in str(url) or "%" in host or (url.port or 0) > LAST_PORT
    if url.scheme not in ("http", "https") or not host or malformed:
        raise InvalidParameterError(parameter, shorten(repr(value)), expected)
    return str(url).rstrip("/")


def is_proxy_url(value: object) -> bool:
    """Whether a value is the URL of a proxy of a kind that httpx supports."""
    try:
        return isinstance(value, str) and bool(httpx.Proxy(value).url.host)
    except (httpx.InvalidURL, ValueError):
        return False


def check_positive(**parameters: float) -> None:
    """Check that each value is a finite number above 0.

    :raises InvalidParameterError: one is not
    """
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InvalidParameterError(name, quote(value), "a number above 0")
