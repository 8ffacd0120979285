"""Any other call to TechFlow, with the HTTP provider's operator and this package's connection, budget and errors.

It needs `airflow-provider-techflow[http]`, and is the one operator module that loads requests and aiohttp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import httpx
from airflow.providers.http.operators.http import HttpOperator
from requests import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.parsing import quote
from techflow_provider.hooks.techflow import TechFlowHook

# What HttpOperator takes and this one does not, and why.
REFUSED = {
    "http_conn_id": "techflow_conn_id in its place",
    "auth_type": "nothing: the connection's API key is sent",
    "retry_args": "nothing: a call is repeated where that is safe; a task's own retries do the rest",
    "request_kwargs": "data, with headers={'Content-Type': 'application/json'} for JSON",
    "tcp_keep_alive": "nothing: connections are httpx's",
    "tcp_keep_alive_idle": "nothing: connections are httpx's",
    "tcp_keep_alive_count": "nothing: connections are httpx's",
    "tcp_keep_alive_interval": "nothing: connections are httpx's",
    "warn_on_non_idempotent": "nothing: no request is sent in the triggerer, where it could be sent twice",
}
NOT_DEFERRABLE = "False: in the triggerer a request could be sent twice, and outside of the rate budget's order"


class TechFlowHttpOperator(HttpOperator):
    """Send any request below the base URL, such as one that the reference doesn't list.

    It is the HTTP provider's `HttpOperator`, and its callables get `requests` responses as there.

    :param endpoint: path below the connection's base URL
    :param method: GET, POST, PUT, PATCH or DELETE
    :param data: for GET the query, else the body: a dict is sent as a form, text as it is
    :param headers: further headers; the key's own can't be replaced
    :param response_check: takes the response (the list of them with `pagination_function`) and, by name, what it wants
        of the context; the task fails when it returns false
    :param response_filter: takes the same; what it returns is the task's result, in place of the response's text
    :param pagination_function: takes a response and returns `endpoint`, `data`, `headers` or `extra_options` of the
        next request, or None when there is none
    :param extra_options: `timeout`, `verify` and `check_response` (see `TechFlowHook.run`)
    :param log_response: whether to log the response's text
    :param techflow_conn_id: connection of the type `techflow`
    :param deferrable: must be False, which it is whatever `[operators] default_deferrable` says
    :raises TechFlowError: every answer but a 2xx, and every way in which none came
    :raises InvalidParameterError: a parameter of `HttpOperator` that can't be honoured is given
    """

    conn_id_field = "techflow_conn_id"
    template_fields: Sequence[str] = ("endpoint", "data", "headers", "techflow_conn_id")
    ui_color = "#dcecf7"

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        method: str = "POST",
        data: dict[str, Any] | str | None = None,
        headers: dict[str, str] | None = None,
        pagination_function: Callable[..., Any] | None = None,
        response_check: Callable[..., bool] | None = None,
        response_filter: Callable[..., Any] | None = None,
        extra_options: dict[str, Any] | None = None,
        log_response: bool = False,
        techflow_conn_id: str = "techflow_default",
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        # Told where the DAG is parsed, since none of these is templated.
        _refuse(kwargs, deferrable)
        super().__init__(
            endpoint=endpoint,
            method=method,
            data=data,
            headers=headers,
            pagination_function=pagination_function,
            response_check=response_check,
            response_filter=response_filter,
            extra_options=extra_options,
            log_response=log_response,
            deferrable=False,
            **kwargs,
        )
        self.techflow_conn_id = techflow_conn_id

    @cached_property
    def hook(self) -> Any:
        """What sends: `TechFlowHook`, with answers as `HttpHook` gives them."""
        return _RequestsHook(TechFlowHook(self.techflow_conn_id, method=self.method))  # type: ignore[arg-type]  # checked by `raw_call`


def _refuse(given: Mapping[str, Any], deferrable: bool) -> None:
    for name, expected in REFUSED.items():
        if name in given:
            raise InvalidParameterError(name, quote(given[name]), expected)
    if deferrable:
        raise InvalidParameterError("deferrable", "True", NOT_DEFERRABLE)


class _RequestsHook:
    """`TechFlowHook.run` with answers of `requests`, which the callables of `HttpOperator` are written for."""

    def __init__(self, hook: TechFlowHook) -> None:
        self._hook = hook

    def run(
        self,
        endpoint: str | None = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        extra_options: Mapping[str, Any] | None = None,
    ) -> Response:
        return requests_response(self._hook.run(endpoint, data, headers, extra_options))


def requests_response(answer: httpx.Response) -> Response:
    """Return an answer as `requests` would have given it, without the key in its request."""
    response = Response()
    response.status_code = answer.status_code
    response.reason = answer.reason_phrase
    response.headers = CaseInsensitiveDict(answer.headers)
    response.url = str(answer.url)
    response.encoding = answer.charset_encoding or answer.encoding
    response.elapsed = answer.elapsed
    response.request = PreparedRequest()
    response.request.prepare(method=answer.request.method, url=str(answer.url))
    response._content = answer.content  # noqa: SLF001  # as the HTTP provider fills one
    return response
