"""A list that is decoded item by item equals what `json.loads` returns, and is rejected where that fails."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from techflow_provider.client.json_stream import RowMemory, parse_list
from techflow_provider.client.parsing import DecodeError, Json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)
WRITTEN = st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False}])


@settings(max_examples=40, deadline=None)
@given(VALUES, WRITTEN, st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-8-sig"]))
def test_every_value_equals_what_json_loads_returns(value: Json, written: dict[str, object], encoding: str) -> None:
    content = json.dumps(value, **written).encode(encoding, "surrogatepass")  # type: ignore[arg-type]  # of dumps
    assert parse_list(content) == json.loads(content)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.data())
def test_what_json_loads_rejects_is_rejected(value: Json, data: st.DataObject) -> None:
    text = json.dumps([value, value])
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(at, len(text)))
    content = (text[:at] + data.draw(st.sampled_from(["", ",", "]", "}", ":", '"', " ", "x"])) + text[cut:]).encode()
    try:
        expected = json.loads(content)
    except ValueError:
        with pytest.raises(DecodeError, match="expected JSON, got"):
            parse_list(content)
    else:
        assert parse_list(content) == expected


@pytest.mark.parametrize("wrapped", [False, True])
def test_items_that_are_not_needed_are_left_out_of_the_outer_list_alone(wrapped: bool) -> None:
    items, needed = [{"a": [1]}, 1, 2, [1, 2]], [{"a": [1]}, 2, [1, 2]]
    content = json.dumps({"n": 1, "items": items} if wrapped else items).encode()
    kept = parse_list(content, memory=RowMemory(lambda item: (item != 1, 0)))
    assert kept == ({"n": 1, "items": needed} if wrapped else needed)


def select(item: Json) -> tuple[bool, int]:
    assert isinstance(item, dict)
    return True, int(str(item["id"])) + 1


ROWS = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["running", "completed"])), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROWS, max_size=5), WRITTEN)
def test_rows_that_have_not_changed_are_left_out_and_still_counted(
    lists: list[list[tuple[int, str]]], written: dict[str, object]
) -> None:
    memory, known = RowMemory(select), set[str]()
    for rows in lists:
        items: list[Json] = [{"id": number, "status": status, "of": [1, {"a": "]}, {"}]} for number, status in rows]
        content = json.dumps({"executions": items, "next": None}, **written).encode()  # type: ignore[arg-type]  # of dumps
        read = parse_list(content, memory=memory)
        assert isinstance(read, dict)
        left_out = [each for each in items if each not in read["executions"]]  # type: ignore[operator]
        assert all(json.dumps(each) in known for each in left_out)
        assert memory.subjects == {number + 1 for number, _ in rows}
        assert memory.left_out + len(read["executions"]) == len(items)  # type: ignore[arg-type]
        known = {json.dumps(each) for each in items}


def test_a_list_that_has_not_changed_at_all_is_not_decoded_again() -> None:
    memory = RowMemory(select)
    content = json.dumps({"executions": [{"id": 1, "status": "running"}, {"id": 2}], "next": "/more"}).encode()
    assert parse_list(content, memory=memory) == json.loads(content)
    for _ in range(2):
        assert parse_list(content, memory=memory) == {"executions": [], "next": "/more"}
        assert (memory.left_out, memory.subjects) == (2, {2, 3})
    changed = parse_list(content.replace(b"running", b"completed"), memory=memory)
    assert changed == {"executions": [{"id": 1, "status": "completed"}], "next": "/more"}
