"""The SQLite file: who may read it, and what happens when it is broken, full, read-only, replaced, of another boot."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from techflow_provider.state.budget import SharedBudget
from techflow_provider.state.files import StateFile
from techflow_provider.state.gcra import Policy, RequestClass, ReservationRequest
from techflow_provider.state.sqlite import SqliteStore, boot_id, temporary_store
from techflow_provider.state.store import StoreError

COMMAND = RequestClass.COMMAND
POLICY = Policy.of(100, 6)


@pytest.fixture
def file(sqlite_path: Path) -> StateFile:
    return StateFile(sqlite_path)


@pytest.fixture
def sqlite(file, clock) -> Iterator[SqliteStore]:
    store = SqliteStore(file, clock)
    yield store
    store.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestFile:
    """It is made for its owner alone, and never where others could put something in its place."""

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_it_and_its_folder_are_the_owners_alone(self, sqlite, sqlite_path, umask):
        previous = os.umask(umask)
        try:
            sqlite.ring("bell")
        finally:
            os.umask(previous)
        assert mode(sqlite_path.parent) == 0o700
        assert {mode(path) for path in sqlite_path.parent.iterdir()} == {0o600}

    def test_a_symbolic_link_is_not_followed(self, sqlite, sqlite_path, tmp_path):
        sqlite_path.parent.mkdir()
        sqlite_path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="symbolic link"):
            sqlite.ring("bell")
        assert not (tmp_path / "elsewhere").exists()

    def test_a_folder_that_everybody_may_write_in_is_refused(self, sqlite, sqlite_path):
        sqlite_path.parent.mkdir()
        sqlite_path.parent.chmod(0o1777)
        with pytest.raises(StoreError, match="others may write"):
            sqlite.ring("bell")

    def test_the_store_to_fall_back_on_refuses_a_folder_of_another_user(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        store = temporary_store.__wrapped__()
        assert store.ring("bell") == 1
        os.chown(Path(store.location).parent, 12345, -1)
        store.close()
        with pytest.raises(StoreError, match="others may write"):
            store.ring("bell")

    def test_it_is_found_again_after_it_was_deleted(self, sqlite, sqlite_path):
        sqlite.ring("bell")
        for path in sqlite_path.parent.iterdir():
            path.unlink()
        assert sqlite.ring("bell") == 1

    def test_a_file_of_a_later_format_is_left_alone(self, sqlite, sqlite_path, file, clock):
        sqlite._write(lambda connection: connection.execute("PRAGMA user_version = 99"))
        sqlite.close()
        with pytest.raises(StoreError, match="expected state of format 1, got 99"):
            SqliteStore(file, clock).ring("bell")


class TestBrokenFile:
    """It is set aside and begun anew, empty, by whoever finds it."""

    def test_rubbish_is_set_aside(self, sqlite, sqlite_path, caplog):
        sqlite_path.parent.mkdir()
        sqlite_path.write_bytes(b"rubbish " * 1000)
        assert sqlite.ring("bell") == 1
        assert (sqlite_path.parent / "state.sqlite.broken").read_bytes().startswith(b"rubbish")
        assert len(caplog.records) == 1

    def test_damage_found_later_is_set_aside_with_its_journal(self, sqlite, sqlite_path, clock):
        sqlite.take("key", POLICY, ReservationRequest(COMMAND))
        sqlite.close()
        content = bytearray(sqlite_path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        sqlite_path.write_bytes(content)
        other = SqliteStore(StateFile(sqlite_path), clock)
        answers = [store.take("key", POLICY, ReservationRequest(COMMAND)) for store in (sqlite, other, sqlite)]
        assert not any(answer.may_send for answer in answers)
        assert len({answer.due for answer in answers}) == 3
        other.close()

    def test_another_process_that_has_it_open_moves_on_to_the_new_one(self, sqlite, sqlite_path, clock):
        other = SqliteStore(StateFile(sqlite_path), clock)
        sqlite.ring("bell")
        other.ring("bell")
        with sqlite._file._door():
            sqlite._file._set_aside(sqlite._file._present_file())
        assert [sqlite.ring("bell"), other.ring("bell"), sqlite.bell("bell")] == [1, 2, 2]
        other.close()


class TestNoRoom:
    """Where nothing can be written, a share of the limit goes on and nothing is lost."""

    def goes_on(self, store: SqliteStore, clock) -> None:
        budget = SharedBudget(store, "key", clock=clock)
        held = budget.reserve(COMMAND, 1e9)
        clock.advance(held.wait_seconds)
        assert budget.reserve(COMMAND, 0.0, held).may_send
        assert budget.snapshot().requests_per_minute == 25

    def test_a_path_below_a_file_can_not_be_made(self, tmp_path, clock):
        (tmp_path / "file").touch()
        self.goes_on(SqliteStore(StateFile(tmp_path / "file" / "state.sqlite"), clock), clock)

    def test_a_folder_that_can_not_be_written(self, clock):
        self.goes_on(SqliteStore(StateFile(Path("/proc/self/state.sqlite")), clock), clock)

    def test_a_full_disk(self, sqlite, clock):
        sqlite.ring("bell")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal, so that a write beyond this size fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            self.goes_on(sqlite, clock)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert sqlite.ring("bell") == 2


class TestReboot:
    """Times of another boot mean nothing: accounts begin empty, and records live anew."""

    def reboot(self, file: StateFile, clock) -> SqliteStore:
        file.close()
        clock.now = 5.0
        return SqliteStore(file, clock, lambda: "the next boot")

    def test_an_account_begins_empty_and_is_not_stuck(self, sqlite, file, clock):
        for _ in range(50):
            held = sqlite.take("key", POLICY, ReservationRequest(COMMAND))
        after = self.reboot(file, clock)
        answer = after.take("key", POLICY, ReservationRequest(COMMAND, earlier=held))
        assert not answer.may_send
        assert answer.wait_seconds == pytest.approx(POLICY.rate.interval_seconds)
        assert after.read_budget("key").grants == ()

    def test_records_are_kept_and_their_time_begins_anew(self, sqlite, file, clock):
        sqlite.put("space", "a", "1", 60.0)
        clock.advance(50)
        after = self.reboot(file, clock)
        assert [entry.age_seconds for entry in after.entries("space")] == [0.0]
        clock.advance(59)
        assert [entry.value for entry in after.entries("space")] == ["1"]

    def test_the_present_boot_has_a_name(self):
        assert boot_id() == boot_id() != ""
