"""The store behind an API server: how many requests it takes, whom it believes, and what it says when it fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.http import HttpStore
from techflow_provider.state.identity import store_entry
from techflow_provider.state.memory import MemoryStore
from techflow_provider.state.optimistic import Operation, Row
from techflow_provider.state.records import Records
from techflow_provider.state.signing import Signer, derive_key
from techflow_provider.state.store import StoreError, Write, read_only
from techflow_provider.state_server.access import Access
from tests.state.state_api import DEPLOYMENT_SIGNER, URL, AppTransport, serve

KEY = "an-api-key-that-nobody-may-see"


def store_on(transport: httpx.BaseTransport, *signers: Signer) -> HttpStore:
    """Return a store that signs with the signers in turn, and then with the last one."""
    first, *others = signers or (DEPLOYMENT_SIGNER,)
    return HttpStore(URL, first, lambda: others[0] if others else first, transport=transport)


@pytest.fixture
def api() -> AppTransport:
    """The state's API over a store of its own."""
    return serve(MemoryStore())


def write(value: str) -> Callable[..., tuple[Write, None]]:
    return lambda *_: (Write(value, 60.0), None)


class TestRequests:
    """Usually, one operation takes one request."""

    def test_a_new_entry_takes_one_request_once_the_clock_is_known(self, api):
        store = store_on(api)
        store.update("a", "first", read_only)
        before = len(api.requests)
        for number in range(5):
            store.update("a", f"{number}", write("1"))
        assert len(api.requests) - before == 5

    def test_several_updates_take_one_request(self, api):
        store = store_on(api)
        store.update("a", "first", read_only)
        before = len(api.requests)
        store.update_many([("a", "claim", write("1")), ("a/attempts", "record", write("2"))])
        assert len(api.requests) - before == 1
        store.update_many([("a", "claim", read_only), ("a/attempts", "record", read_only)])
        assert len(api.requests) - before == 2

    def test_updates_that_are_too_many_or_too_long_for_a_request_take_several(self, api):
        store = store_on(api)
        store.update("a", "first", read_only)
        before = len(api.requests)
        store.update_many([("a", f"{number}", write("1")) for number in range(45)])
        assert len(api.requests) - before == 3
        store.update_many([("a", f"long {number}", write("1" * 200_000)) for number in range(7)])
        assert len(api.requests) - before == 5

    def test_an_update_that_is_too_long_for_a_request_is_an_error(self, api):
        with pytest.raises(StoreError, match="at most 1048576 bytes"):
            store_on(api).update("a", "name", write("1" * 2_000_000))

    def test_the_server_carries_out_none_of_too_many_operations(self, api):
        body = json.dumps({"operations": [asdict(Operation("a", "name", None, Row("1", "v", 0, 1e12), 0.0))] * 21})
        response = httpx.Client(transport=api).post(
            f"{URL}/", content=body, headers=DEPLOYMENT_SIGNER.headers(body.encode(), time.time(), "0" * 32)
        )
        assert (response.status_code, response.json()["error"]) == (
            400,
            "expected at most 20 operations, got 21",
        )
        assert store_on(api).entries("a") == []

    def test_a_request_for_a_slot_takes_one(self, api):
        budget = SharedBudget(store_on(api), "a")
        for number in range(1, 4):
            budget.reserve(RequestClass.COMMAND, 600.0)
            assert len(api.requests) == number

    def test_an_entry_that_another_process_wrote_takes_one_more(self, api):
        first, second = store_on(api), store_on(api)
        for store in (first, second):
            store.update("a", "counter", read_only)
        Records(first, "a").notify()
        before = len(api.requests)
        assert Records(second, "a").notify() == 2
        assert len(api.requests) - before == 2

    def test_callers_that_never_wait_all_get_slots(self, api):
        budgets = [SharedBudget(store_on(api), "a", 100, 6) for _ in range(4)]
        granted = [sum(budget.reserve(RequestClass.COMMAND, 600.0).granted for _ in range(10)) for budget in budgets]
        assert granted == [10, 10, 10, 10]

    def test_a_child_opens_connections_of_its_own(self, api):
        store = store_on(api)
        store.update("a", "entry", write("from the parent"))
        parents = store.client()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write_end, b"own" if store.client() is not parents else b"the parent's")
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read_end, 100) == b"own"
        assert store.client() is parents


class TestKeys:
    """A request that is signed with another key gets nothing, and a key may change at any time."""

    signer, other = (Signer("techflow_default", derive_key(key, "account")) for key in (KEY, "another-key"))

    def test_a_changed_key_is_read_again_once_the_server_refuses_the_old_one(self):
        api = serve(MemoryStore(), {"techflow_default": Access(self.signer, None)})
        store = store_on(api, self.other, self.signer)
        store.update("a", "entry", write("1"))
        assert [each.value for each in store.entries("a")] == ["1"]

    def test_a_key_that_the_server_does_not_know_is_an_error_with_a_remedy(self):
        api = serve(MemoryStore(), {"techflow_default": Access(self.signer, None)})
        with pytest.raises(StoreError, match="state_secret") as caught:
            store_on(api, self.other).entries("a")
        assert KEY not in str(caught.value)
        assert len(api.requests) == 2

    @pytest.mark.parametrize("ahead", [300, -300])
    def test_a_clock_that_differs_too_much_is_named_with_the_difference(self, ahead):
        date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead), usegmt=True)
        refusal = httpx.Response(401, headers={"date": date})
        with pytest.raises(StoreError, match=r"clock and this host's differ by (299|30\d) s.*NTP"):
            store_on(httpx.MockTransport(lambda _: refusal)).entries("a")

    def test_a_server_without_the_key_is_not_believed(self):
        def impostor(_: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"results": [[]]})

        with pytest.raises(StoreError, match="no state is served there"):
            store_on(httpx.MockTransport(impostor), self.signer).entries("a")

    def test_the_response_to_another_request_is_not_believed(self, api):
        replies: list[httpx.Response] = []

        def replay(request: httpx.Request) -> httpx.Response:
            replies.append(api.handle_request(request))
            return replies[0]

        store = store_on(httpx.MockTransport(replay))
        store.entries("a")
        with pytest.raises(StoreError):
            store.entries("a")


class TestFailures:
    """A failure says what is wrong, and nothing is written twice."""

    @pytest.mark.parametrize("status", [404, 405, 307])
    def test_an_api_server_without_the_state_is_named_as_that(self, status):
        with pytest.raises(StoreError, match=r"this package.*--apps.*state_url"):
            store_on(httpx.MockTransport(lambda _: httpx.Response(status))).entries("a")

    def test_one_that_is_away_is_an_error_that_names_it(self):
        def refuse(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

        with pytest.raises(StoreError, match=f"{URL}: ConnectError: refused"):
            store_on(httpx.MockTransport(refuse)).entries("a")

    def test_a_write_whose_response_was_lost_is_not_repeated(self):
        kept = MemoryStore()
        api, lose = serve(kept), [False]

        def handle(request: httpx.Request) -> httpx.Response:
            response = api.handle_request(request)
            if lose[0]:
                lose[0] = False
                raise httpx.ReadError("reset", request=request)
            return response

        store = store_on(httpx.MockTransport(handle))
        claimed = store.update("a", "claim", read_only)[0]
        lose[0] = True
        holder = store.update(
            "a", "claim", lambda entry, _: (None, entry.value) if entry else (Write("me", 60.0), "me")
        )
        assert (claimed, holder) == (None, "me")
        assert [each.value for each in kept.entries("a")] == ["me"]

    def test_the_id_of_the_store_behind_it_can_be_read_and_not_changed(self):
        kept = MemoryStore()
        first, second = (store_on(serve(kept)) for _ in range(2))
        assert store_entry(first).value == store_entry(second).value == store_entry(kept).value
        with pytest.raises(StoreError, match="403"):
            first.update("store", "id", write("forged"))
        assert store_entry(second).value == store_entry(kept).value != "forged"
