"""Whatever a server sends costs one response at most: no row hides another one, and no reader raises anything else."""

from __future__ import annotations

import json
import logging
import tracemalloc
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from techflow_provider.client import NotFoundError, ServerError, TechFlowError, UnexpectedResponseError
from techflow_provider.client.flow import Call
from techflow_provider.client.history import ExecutionSelector, HistoryFilter
from techflow_provider.client.json_stream import MAX_ITEMS, parse_list
from techflow_provider.client.models import Execution, read_executions, read_rows, read_workflows
from techflow_provider.client.parsing import MAX_DEPTH, MAX_VALUES, DecodeError, Json, http_date, parse_json
from techflow_provider.client.reading import PollMemory
from tests.client.polls import poll_once

MEGABYTE = 1024 * 1024
RUNNING: dict[str, Json] = {"id": "ex_1", "workflow_id": "wf_1", "status": "running"}
NO_TIMES: list[Any] = [
    *("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00"),
    *(
        "1970-01-01T00:00:00Z",
        "12:.0",
        "",
        "yesterday",
        "²²²²²²²²²",
        "9" * 5000,
        "2026-13-01T00:00:00Z",
        "P1D",
        "24:61",
    ),
    *("2026-01-01T00:00:00+99:99", "0000-000", "2026-999T00:00:00Z", "Mon, 01 Jan 0001 00:00:00 +2359", "\0", "\ud800"),
    *(0, -1, 1e300, -1e300, float("inf"), float("nan"), 10**30, True, [], {}, None),
]
BAD_ROWS: list[Any] = [
    *(None, 5, "ex_2", [], {}, [[]], True, 1e999),
    *({"id": None, "status": "running"}, {"id": "ex_2"}, {"id": "ex_2", "status": None}, {"id": "ex_2", "status": 5}),
    *({"id": [], "status": "running"}, {"id": "ex_2", "status": "running", "workflow": {"name": "n"}}),
    {"id": "ex_2", "status": "running", "deep": json.loads("[" * 300 + "]" * 300)},
    {"\ud800": "\ud800", "\u202e\x1b": 1},
]


def respond(content: bytes | str, headers: Mapping[str, str] | None = None, status: int = 200) -> Any:
    """Respond to every request with the same bytes."""
    return lambda _: httpx.Response(status, headers=dict(headers or {}), content=content)


@pytest.mark.parametrize("value", NO_TIMES, ids=repr)
@pytest.mark.parametrize("name", ["started_at", "finished_at"])
def test_a_time_that_cannot_be_read_or_is_not_plausible_counts_as_absent(name: str, value: Any) -> None:
    execution = Execution.read({**RUNNING, name: value})
    assert (execution.started_at, execution.finished_at) == (None, None)
    assert execution.to_dict()[name] is None


@pytest.mark.parametrize(
    "value", ["Mon, 01 Jan 0001 00:00:00 +2359", "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 99 Jan 2020", "é", "1" * 9999]
)
def test_an_http_date_out_of_range_counts_as_absent(value: str) -> None:
    assert http_date(value) is None


@pytest.mark.parametrize("bad", BAD_ROWS, ids=ascii)
def test_a_row_that_cannot_be_read_hides_no_other(connect: Any, caplog: pytest.LogCaptureFixture, bad: Json) -> None:
    rows = [{**RUNNING, "id": "ex_0"}, bad, RUNNING]
    ask = connect(respond=respond(json.dumps({"executions": rows})))
    assert [each.id for each in ask(lambda client: client.executions.list())] == ["ex_0", "ex_1"]
    history = ask(poll_once())
    assert (len(history), history.unreadable) == (2, 1)
    assert history.reason.isprintable()
    read = read_workflows([{"id": "wf_1"}, bad, {"id": "wf_2"}])
    assert [each.id for each in read][::1] in (["wf_1", "wf_2"], ["wf_1", "ex_2", "wf_2"])


def test_rows_that_cannot_be_read_are_logged_once_with_what_identifies_the_first(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [RUNNING, {"id": "ex_of_this_test", "status": 5}, {"id": "another", "status": None}]
    ask = connect(respond=respond(json.dumps(rows)))
    for _ in range(5):
        ask(poll_once())
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [
        (
            "GET /executions: rows that can't be read are left out, such as the row with the id 'ex_of_this_test': "
            "expected text as status, got a number"
        )
    ]


def test_a_bad_row_beside_rows_that_nobody_needs_does_not_fail_the_poll(connect: Any) -> None:
    wanted = HistoryFilter()
    wanted.add(ExecutionSelector("ex_7"))
    ask = connect(respond=respond(json.dumps([{"id": "ex_7", "status": None}, RUNNING])))
    history = ask(poll_once(wanted))
    assert (len(history), history.unreadable) == (0, 1)


def test_a_list_without_any_readable_row_is_an_error() -> None:
    with pytest.raises(DecodeError, match=r"expected an execution with status .*, got an object"):
        read_executions([{"id": "ex_1"}, {"id": "ex_2"}])
    assert len(read_executions([])) == 0


def test_a_defect_in_reading_a_row_costs_that_row() -> None:
    def read(row: Json) -> Json:
        if row == 2:
            raise KeyError(row)
        return row

    rows = read_rows([1, 2, 3], read)
    assert (rows.items, rows.unreadable, rows.reason) == ((1, 3), 1, "the row that is a number: KeyError")


@pytest.mark.parametrize(
    "kind", [ZeroDivisionError, KeyError, UnicodeError, AssertionError, RecursionError, MemoryError]
)
def test_a_defect_in_a_reader_is_an_unexpected_response(connect: Any, api_key: str, kind: type[Exception]) -> None:
    def read(*_: object) -> None:
        raise kind(f"with {api_key}")

    ask = connect(respond=respond(b"{}"))
    with pytest.raises(UnexpectedResponseError, match=f"a defect: {kind.__name__} in read, line") as caught:
        ask(lambda client: client.send(Call("GET", "/executions", read)))
    assert caught.value.is_transient
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert api_key not in str(caught.value)


HEADERS = {
    "last-modified": ["Mon, 01 Jan 0001 00:00:00 +2359", "é", "0", "Fri, 31 Dec 9999 23:59:59 GMT", "1" * 9000],
    "date": ["Mon, 01 Jan 0001 00:00:00 +2359", "é", "", "Fri, 31 Dec 9999 23:59:59 -2359"],
    "retry-after": ["Mon, 01 Jan 0001 00:00:00 +2359", "é", "-1", "1e999", "nan", "9" * 5000],
    "link": ['<>; rel="next"', "é", "<", ";;;", '<?page=2>; rel="previous"'],
    "content-type": ["é", "text/html; charset=", "; charset=undefined", "application/json; charset=idna", ";" * 10_000],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HEADERS.items() for value in values])
@pytest.mark.parametrize("status", [200, 304, 404, 429, 500])
def test_a_header_that_cannot_be_read_counts_as_absent(connect: Any, name: str, value: str, status: int) -> None:
    def reply(_: httpx.Request) -> httpx.Response:
        headers = {"last-modified": "Thu, 01 Jan 2026 00:00:00 GMT", "date": "Thu, 01 Jan 2026 01:00:00 GMT"}
        raw = {**headers, name: value}
        content = json.dumps([RUNNING]).encode()
        pairs = [(key.encode(), text.encode("utf-8", "surrogatepass")) for key, text in raw.items()]
        return httpx.Response(status, headers=pairs, content=content)

    ask = connect(respond=reply, deadline_seconds=30)
    memory = PollMemory()
    for number in range(2):
        if status == 200:
            # The second poll leaves out what hasn't changed.
            assert len(ask(poll_once(memory=memory, within_seconds=10.0))) == 1 - number
        else:
            with pytest.raises(TechFlowError):
                ask(poll_once(memory=memory, within_seconds=10.0))


@pytest.mark.parametrize("date", ["Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 0"])
def test_a_start_is_read_whatever_the_date_of_its_response(connect: Any, date: str) -> None:
    ask = connect(respond=respond(b'{"id": "ex_1"}', {"date": date}))
    assert ask(lambda client: client.workflows.execute("wf_1")).id == "ex_1"


@pytest.mark.parametrize("url", ["https://xn--/", "http://[", "https://a\x00b/", "//xn--a", "https://" + "a" * 70_000])
@pytest.mark.parametrize("place", ["header", "body"])
def test_a_link_to_something_other_than_a_url_is_an_unexpected_response(connect: Any, place: str, url: str) -> None:
    linked = [(b"link", f'<{url}>; rel="next"'.encode("utf-8", "surrogatepass"))]
    body = {"executions": [RUNNING], **({"next": url} if place == "body" else {})}

    def reply(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=linked if place == "header" else [], json=body)

    with pytest.raises(UnexpectedResponseError, match=r"expected (the URL of a next page|a next page on the same)"):
        connect(respond=reply)(lambda client: client.executions.list())


@pytest.mark.parametrize(
    "charset",
    ["utf-16", "idna", "punycode", "undefined", "zlib", "rot13", "unicode_escape", "utf-7", "base64", "x" * 99],
)
@pytest.mark.parametrize("content", [b"odd page", b"\xff\xfe\xfd", b"\\d\\N{nothing}", b"\0" * 7, b""], ids=repr)
@pytest.mark.parametrize(("status", "kind"), [(404, NotFoundError), (500, ServerError), (200, UnexpectedResponseError)])
def test_an_error_page_is_read_in_whatever_charset(
    connect: Any, status: int, kind: type[Exception], content: bytes, charset: str
) -> None:
    headers = {"content-type": f"text/html; charset={charset}"}
    with pytest.raises(kind):
        connect(respond=respond(content, headers, status))(lambda client: client.workflows.get("wf_1"))


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        *(("iso-8859-1", "latin-1"), ("ISO-8859-15", "iso-8859-15"), ('"windows-1252"', "cp1252"), ("gbk", "gbk")),
        *(
            ("shift_jis", "shift_jis"),
            ("utf-8", "utf-8"),
            ("iso-8859-1", "utf-8"),
            ("utf-16", "utf-16"),
            ("x", "utf-8"),
        ),
    ],
)
def test_json_is_read_in_the_charset_that_is_named_unless_it_is_unicode(
    connect: Any, charset: str, encoding: str
) -> None:
    name = "日本" if encoding in ("gbk", "shift_jis") else "Prüfung é"
    content = json.dumps([{"id": "wf_1", "name": name}], ensure_ascii=False).encode(encoding)
    ask = connect(respond=respond(content, {"content-type": f"application/json; charset={charset}"}))
    assert [each.name for each in ask(lambda client: client.workflows.list())] == [name]


def test_bytes_that_are_text_in_no_way_are_an_unexpected_response(connect: Any) -> None:
    ask = connect(respond=respond(b'[{"id": "\xff\xfe"}]', {"content-type": "application/json; charset=idna"}))
    with pytest.raises(UnexpectedResponseError, match="expected JSON"):
        ask(lambda client: client.workflows.list())


SMALL_VALUES = ["[]", "{}", "0", '""', "null", '{"a":{}}', "[[],[]]", '{"id":"x","status":"r"}']


@pytest.mark.parametrize("value", SMALL_VALUES)
@pytest.mark.parametrize("form", ["[{}]", '{{"executions":[{}]}}', '[{{"id":"ex_1","status":"r","steps":[{}]}}]'])
def test_a_body_of_countless_values_is_refused_before_it_is_unpacked(value: str, form: str) -> None:
    content = form.format(",".join([value] * (MAX_VALUES + 1))).encode()
    tracemalloc.start()
    try:
        for parse in (parse_json, parse_list):
            with pytest.raises(DecodeError, match=f"at most {MAX_VALUES} values"):
                parse(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTE


def test_the_rows_of_a_list_are_bounded() -> None:
    with pytest.raises(DecodeError, match=f"at most {MAX_ITEMS} items"):
        parse_list(b"[" + b"1," * MAX_ITEMS + b"1]")


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 500, 900, 5000, 1_000_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_bounded(levels: int, begin: str, end: str) -> None:
    content = (begin * levels + "1" + end * levels).encode()
    with pytest.raises(DecodeError):
        parse_json(content)


def test_plausible_depth_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
