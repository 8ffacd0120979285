"""The operator for any other call to TechFlow: the HTTP provider's, with this package's connection, budget and errors.

It needs `airflow-provider-techflow[http]`; no other module of the package loads requests and aiohttp.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from requests import PreparedRequest, Response
from requests.structures import CaseInsensitiveDict

from techflow_provider.client.errors import InvalidParameterError
from techflow_provider.client.parsing import quote
from techflow_provider.hooks.techflow import TechFlowHook

SUPPORTED = (
    *("endpoint", "method", "data", "headers", "response_check", "response_filter"),
    *("pagination_function", "extra_options", "log_response"),
)


class TechFlowHttpOperator(HttpOperator):
    """Send any request below the base URL, such as one that the reference doesn't list.

    It is the HTTP provider's `HttpOperator`, and its callables receive `requests` responses as they do there. ::

        TechFlowHttpOperator(task_id="quota", method="GET", endpoint="quota", response_filter=lambda r: r.json())

    >>> TechFlowHttpOperator(task_id="status", method="GET", endpoint="status", response_filter=lambda it: it.json())

    :param endpoint: path below the connection's base URL
    :param method: GET, POST (the default), PUT, PATCH or DELETE
    :param data: the query of a GET, otherwise the body: a dict is sent as a form, text is sent unchanged
    :param headers: additional headers; those with the key can't be replaced
    :param response_check: receives the response (a list of responses with `pagination_function`) and, by name, parts of
        the context; the task fails if it returns false
    :param response_filter: receives the same; it returns the task's result, which by default is the response's text
    :param pagination_function: receives a response and returns `endpoint`, `data`, `headers` or `extra_options` of the
        next request, or None after the last one
    :param extra_options: `timeout`, `verify` and `check_response` (see `TechFlowHook.run`)
    :param log_response: whether to log the response's text
    :param techflow_conn_id: connection of the type `techflow`
    :param deferrable: must be False; `[operators] default_deferrable` has no effect
    :raises TechFlowError: the response isn't a 2xx, or there is none
    :raises InvalidParameterError: a parameter of `HttpOperator` isn't supported
    """

    conn_id_field = "techflow_conn_id"
    template_fields: Sequence[str] = ("endpoint", "data", "headers", "techflow_conn_id")
    ui_color = "#dcecf7"

    def __init__(self, *, techflow_conn_id: str = "techflow_default", deferrable: bool = False, **kwargs: Any) -> None:
        # Raised when the DAG is parsed, since none of these is templated.
        for name in signature(HttpOperator.__init__).parameters.keys() & kwargs.keys() - {*SUPPORTED}:
            expected = f"one of {', '.join(SUPPORTED)} or techflow_conn_id instead of this parameter"
            raise InvalidParameterError(name, quote(kwargs[name]), expected)
        if deferrable:
            expected = "False, since a triggerer could send the request twice"
            raise InvalidParameterError("deferrable", "True", expected)
        super().__init__(deferrable=False, **kwargs)
        self.techflow_conn_id = techflow_conn_id

    @cached_property
    def hook(self) -> Any:
        """A `TechFlowHook` that returns responses as `HttpHook` does."""
        return _RequestsHook(self.techflow_conn_id, method=self.method)  # type: ignore[arg-type]  # checked by `raw_call`


class _RequestsHook(TechFlowHook):
    """A hook with responses of `requests`, which the callables of `HttpOperator` expect."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        source, response = super().run(*args, **kwargs), Response()
        response.status_code = source.status_code
        response.reason = source.reason_phrase
        response.headers = CaseInsensitiveDict(source.headers)
        response.url = str(source.url)
        response.encoding = source.charset_encoding or source.encoding
        response.elapsed = source.elapsed
        # Without the headers, which contain the key.
        response.request = PreparedRequest()
        response.request.prepare(method=source.request.method, url=str(source.url))
        response._content = source.content  # noqa: SLF001  # as the HTTP provider does
        return response
