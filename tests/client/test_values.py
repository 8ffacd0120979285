"""What people and templates pass in: ids, payloads, status words; and what leaves for XComs, logs and terminals."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from techflow_provider.client import Execution, ExecutionFailedError, InvalidParameterError, Workflow, text
from techflow_provider.client.history import ExecutionSelector, select, select_workflows
from techflow_provider.client.models import StatusWords
from techflow_provider.client.text import get_logger, printable, storable
from techflow_provider.client.values import as_id, as_payload, as_statuses, check_final
from techflow_provider.triggers.outcomes import ended_event, execution_of

ROW: dict[str, Any] = {
    "id": "ex_1",
    "workflow_id": "12346",
    "status": "completed",
    "started_at": "2026-01-01T00:00:00Z",
}
HOSTILE = "\x1b]0;owned\x07\x9b31m\u202egnp\u200b\ud800\0"
ESCAPED = r"\u001b]0;owned\u0007\u009b31m\u202egnp\u200b\ud800\u0000"


class LazySequence(Sequence[Any]):
    """A sequence that fetches its items, as Airflow's of a mapped task's outputs."""

    def __init__(self, *items: Any) -> None:
        self._items = items

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(("value", "expected"), [(12346, "12346"), (Number.ONE, "1"), (" wf_1\n", "wf_1"), (-5, "-5")])
def test_a_whole_number_and_text_with_space_around_it_are_ids(value, expected):
    assert as_id("workflow_id", value) == expected


@pytest.mark.parametrize(
    "operation",
    [
        lambda client: client.workflows.get(12346).id,
        lambda client: client.workflows.update(12346, name=2026, description=7).id,
        lambda client: client.workflows.execute(12346, {"a": 1}).workflow_id,
        lambda client: client.workflows.delete(12346),
        lambda client: client.workflows.create(20260101).name and "12346",
    ],
)
def test_every_call_takes_a_number_for_an_id_or_a_name(connect, sandbox, operation):
    sandbox.add_workflow("2026", id="12346")
    assert connect()(operation) in ("12346", None)


def test_executions_are_selected_by_a_number(connect, sandbox):
    sandbox.add_workflow("n", id="12346")
    started = sandbox.start("12346")
    ask = connect()
    assert [each.id for each in ask(lambda client: client.executions.list(12346))] == [started.id]
    assert ExecutionSelector(17, None).execution_id == "17"  # type: ignore[arg-type]  # the point
    assert ExecutionSelector(None, 17, datetime.now(UTC)).workflow_id == "17"  # type: ignore[arg-type]  # the point


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"parts": LazySequence(1, "b", LazySequence())}, {"parts": [1, "b", []]}),
        ({1: "a", "b": 2, None: 0, False: 1.5}, {"1": "a", "b": 2, "null": 0, "false": 1.5}),
        ({"day": date(2026, 1, 1), 1.5: {"x"}}, {"day": "2026-01-01", "1.5": ["x"]}),
        ({"at": datetime(2026, 1, 1, tzinfo=UTC), "n": Number.ONE}, {"at": "2026-01-01T00:00:00+00:00", "n": 1}),
        ({"set": {"c", "a", "b"}, "tuple": (1, (2,))}, {"set": ["a", "b", "c"], "tuple": [1, [2]]}),
        ('{"a": 1}\n', {"a": 1}),
        ("{'a': None, 'b': [True]}", {"a": None, "b": [True]}),
        ("{}", {}),
        (" \n", None),
        ("None", None),
        (None, None),
    ],
)
def test_a_payload_may_be_any_mapping_or_text_that_contains_one(payload, expected):
    assert as_payload("payload", payload) == expected


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"parts": LazySequence(1, {"x": math.nan})}, "Out of range float values"),
        ({"a": [b"x"]}, "got bytes: \"b'x'\""),
        ({1: "a", "1": "b"}, "two keys that JSON writes alike"),
        ({(1, 2): 3}, "keys must be str, int, float, bool or None, not tuple"),
        ({"a": "\ud800"}, "surrogates not allowed"),
        ("{'a': nan}", "text that contains a JSON object"),
        ("[1]", "text that contains a JSON object"),
        ("__import__('os').getcwd()", "text that contains a JSON object"),
    ],
)
def test_the_error_of_a_payload_says_what_is_wrong(payload, problem):
    with pytest.raises(InvalidParameterError, match=rf"^payload: .*{problem}"):
        as_payload("payload", payload)


def test_a_set_is_sent_in_the_same_order_by_every_process():
    names = [f"name-{number}" for number in range(50)]
    assert as_payload("payload", {"names": set(names)}) == {"names": sorted(names)}


@pytest.mark.parametrize("value", ["completed", ["completed"], ("completed",), {"completed"}])
def test_one_status_counts_as_a_list_of_one(value):
    assert as_statuses("allowed_statuses", value) == ("completed",)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [
        ("compelted", "did you mean completed"),
        (["completed", "cancled"], "did you mean cancelled|did you mean canceled"),
        ("faild", "did you mean failed"),
        ("running", "final status words"),
        (["queued"], "final status words"),
        ((), "final status words"),
        ([""], "final status words"),
        ([5], "final status words"),
        (5, "final status words"),
    ],
)
def test_a_word_that_cannot_be_a_final_status_is_rejected(value, nearest):
    with pytest.raises(InvalidParameterError, match=nearest):
        as_statuses("allowed_statuses", value)


def test_words_of_its_own_are_left_to_the_connection():
    words = as_statuses("allowed_statuses", ["done", "completed_with_warnings"])
    check_final("allowed_statuses", words, StatusWords(completed=frozenset(words)))
    with pytest.raises(InvalidParameterError, match=r"^allowed_statuses: .*completed_statuses, got a string: \"done\""):
        check_final("allowed_statuses", words, StatusWords())


@pytest.mark.parametrize("status", ["compelted", "done", "nonsense"])
def test_selecting_by_an_unknown_status_fails_and_names_those_in_the_list(status):
    executions = [Execution.read(ROW), Execution.read({**ROW, "id": "ex_2", "status": "on hold"})]
    with pytest.raises(InvalidParameterError, match=r"^status: .*completed, on hold"):
        select(executions, None, status)
    workflow = Workflow.read({"id": "wf_1", "name": "n", "status": "active"})
    with pytest.raises(InvalidParameterError, match=r"^status: .*\(active\)"):
        select_workflows([workflow], status, None)


def test_selecting_by_a_known_listed_or_configured_status_may_find_nothing():
    executions = [Execution.read({**ROW, "status": "on hold"})]
    assert select(executions, None, "failed") == select([], None, "running") == []
    assert select(executions, None, "done", StatusWords(completed=frozenset({"done"}))) == []
    assert len(select(executions, 12346, "On-Hold")) == 1
    assert select(executions, 9, "On-Hold") == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_lacks_is_none_in_every_mode(number):
    row = json.loads(f'{{"score": {number}, "deep": [{{"x": {number}}}]}}')
    execution = Execution.read({**ROW, **row})
    result = execution.to_dict()
    assert (result["score"], result["deep"]) == (None, [{"x": None}])
    json.dumps(result, allow_nan=False)
    event = json.loads(json.dumps(ended_event(execution), allow_nan=False))
    resumed = execution_of(event)
    assert resumed is not None
    assert resumed.to_dict() == result


def test_a_result_contains_nothing_that_a_database_rejects():
    result = Execution.read({**ROW, "note": "a\0b\ud800c", "list": ["\udfff"], "k\0": "ü😀"}).to_dict()
    assert (result["note"], result["list"], result["k�"]) == ("a�b�c", ["�"], "ü😀")
    json.dumps(result, ensure_ascii=False).encode()
    assert storable("ex_\0") == "ex_�"


def test_invisible_characters_are_shown_as_escapes_and_others_as_they_are():
    assert printable(HOSTILE) == ESCAPED
    assert printable("Zürich\u3000日本 \u00a0😀\n", keep="\n") == "Zürich\u3000日本 \u00a0😀\n"
    assert printable("\U000e0041") == r"\udb40\udc41"
    assert json.loads(f'"{printable("a" + chr(0x202E))}"') == "a\u202e"


def test_every_module_above_the_state_has_a_printable_logger():
    package = Path(text.__file__).parents[1]
    own = {path for part in ("state", "sandbox") for path in (package / part).rglob("*.py")}
    found = [path for path in package.rglob("*.py") if "getLogger(__name__)" in path.read_text() and path not in own]
    assert found == []


def test_a_hostile_server_controls_neither_a_terminal_nor_a_log(caplog):
    error = ExecutionFailedError(f"ex_{HOSTILE}", None, f"failed{HOSTILE}", f"first\nsecond {HOSTILE}")
    assert str(error).isprintable()
    log = get_logger("techflow_provider.test")
    with caplog.at_level(logging.INFO, logger="techflow_provider.test"):
        log.info("Execution %s: %d", HOSTILE, 5)
        log.info("Plain %s", "text")
    assert caplog.messages == [f"Execution {ESCAPED}: 5", "Plain text"]
