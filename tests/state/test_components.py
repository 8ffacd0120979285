"""Which store a store is, and who uses it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from techflow_provider.state.components import Component, report, reported
from techflow_provider.state.http import HttpStore
from techflow_provider.state.identity import NAME, NAMESPACE, store_entry
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.store import Write
from tests.state.state_api import DEPLOYMENT_SIGNER, URL, serve

WORKER = Component("airflow celery", "host-1", "/opt/airflow", "1a2b3c4d", "0.2.0")


def test_a_store_keeps_its_id_and_another_has_another(each_store, key):
    assert store_entry(each_store).value == store_entry(each_store).value != store_entry(MemoryStore()).value


def test_the_age_of_the_id_is_that_of_the_store(store, clock):
    store_entry(store)
    clock.advance(90)
    assert store_entry(store).age_seconds == 90


def test_a_store_that_was_emptied_has_another_id_and_is_young(store, clock):
    before = store_entry(store).value
    clock.advance(90)
    store.update(NAMESPACE, NAME, lambda *_: (Write(None), None))
    assert store_entry(store).value != before
    assert store_entry(store).age_seconds == 0


def test_components_are_listed_the_latest_first(store, clock):
    others = [replace(WORKER, program="airflow triggerer"), replace(WORKER, boot="5e6f7a8b", host="host-2")]
    for component in (WORKER, *others):
        report(store, "key", component)
        clock.advance(10)
    found = reported(store, "key")
    assert [component for component, _ in found] == [*reversed(others), WORKER]
    assert [entry.age_seconds for _, entry in found] == [10, 20, 30]
    assert reported(store, "another key") == []


def test_pods_on_one_node_count_once(store):
    for number in range(50):
        report(store, "key", replace(WORKER, host=f"pod-{number}"))
    assert [component.host for component, _ in reported(store, "key")] == ["pod-49"]


@pytest.mark.parametrize("text", ["", "null", "{}", '{"program": 1}', "[" * 100_000, WORKER.to_text() + " " * 1000])
def test_what_is_not_a_component_is_ignored(text):
    assert Component.read(text) is None


def test_an_api_server_reports_its_callers_once(store, key):
    api = serve(store)
    caller = HttpStore(URL, DEPLOYMENT_SIGNER, lambda: DEPLOYMENT_SIGNER, component=WORKER.to_text(), transport=api)
    for _ in range(3):
        caller.update(f"{key}/claims", "a", lambda *_: (Write("1", 60.0), None))
    assert [component for component, _ in reported(store, key)] == [WORKER]
    assert len(api.requests) <= 4
