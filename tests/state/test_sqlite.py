"""The SQLite file: who may read it, and what happens when it is corrupt, full, replaced, of another boot or version."""

from __future__ import annotations

import logging
import os
import resource
import sqlite3
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from techflow_provider.state import file_access
from techflow_provider.state.budget import RequestClass, SharedBudget
from techflow_provider.state.gcra import Policy, interval_within
from techflow_provider.state.open import fallback_store
from techflow_provider.state.records import Records
from techflow_provider.state.sqlite import SqliteStore, boot_id
from techflow_provider.state.store import Entry, StoreError, Write
from tests.state.conftest import in_fork

COMMAND = RequestClass.COMMAND
POLICY = Policy(100, 6)


@pytest.fixture
def sqlite(sqlite_path, clock) -> Iterator[SqliteStore]:
    store = SqliteStore(sqlite_path, clock=clock)
    yield store
    store.close()


def notify(store) -> int:
    return Records(store, "key").notify()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestFile:
    """It is private to its owner, and never where others could put something in its place."""

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_it_and_its_folder_are_private(self, sqlite, sqlite_path, umask):
        previous = os.umask(umask)
        try:
            notify(sqlite)
        finally:
            os.umask(previous)
        assert mode(sqlite_path.parent) == 0o700
        assert {mode(path) for path in sqlite_path.parent.iterdir()} == {0o600}

    def test_a_symbolic_link_is_not_followed(self, sqlite, sqlite_path, tmp_path):
        sqlite_path.parent.mkdir()
        sqlite_path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreError, match="symbolic link"):
            notify(sqlite)
        assert not (tmp_path / "elsewhere").exists()

    def test_a_folder_that_everybody_may_write_in_is_refused(self, sqlite, sqlite_path):
        sqlite_path.parent.mkdir()
        sqlite_path.parent.chmod(0o1777)
        with pytest.raises(StoreError, match="others may write"):
            notify(sqlite)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")
    @pytest.mark.parametrize("part", ["folder", "file"])
    def test_what_belongs_to_another_user_is_refused(self, sqlite, sqlite_path, part):
        notify(sqlite)
        sqlite.close()
        os.chown(sqlite_path.parent if part == "folder" else sqlite_path, 12345, -1)
        with pytest.raises(StoreError, match=r"others may write to .+user 12345.+state_file_mode"):
            notify(sqlite)

    @pytest.mark.parametrize(("part", "mode"), [("folder", 0o770), ("file", 0o666), ("file", 0o660), ("folder", 0o777)])
    def test_what_others_may_write_to_is_refused(self, sqlite, sqlite_path, part, mode):
        notify(sqlite)
        sqlite.close()
        (sqlite_path.parent if part == "folder" else sqlite_path).chmod(mode)
        with pytest.raises(StoreError, match=r"others may write to .+state_file_mode"):
            notify(sqlite)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    @pytest.mark.parametrize("umask", [0o000, 0o077])
    def test_users_of_a_group_share_one_whose_mode_allows_it(self, tmp_path, umask):
        group, path = 12321, tmp_path / "shared" / "state.sqlite"
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)
        path.parent.mkdir()
        os.chown(path.parent, -1, group)
        path.parent.chmod(0o2770)

        def count_as(user: int) -> int:
            os.umask(umask)
            os.setgroups([group])
            os.setgid(user)
            os.setuid(user)
            return notify(SqliteStore(path, mode=0o660))

        assert [in_fork(partial(count_as, user)) for user in (30001, 30002, 30001)] == [1, 2, 3]

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.gcsfuse", "9p", "ceph"])
    def test_a_network_file_system_is_refused_with_the_remedy(self, sqlite, sqlite_path, tmp_path, kind, monkeypatch):
        device = tmp_path.stat().st_dev
        mount = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime shared:1 - {kind} server:/export rw\n"
        (tmp_path / "mountinfo").write_text(mount)
        monkeypatch.setattr(file_access, "MOUNTS", tmp_path / "mountinfo")
        with pytest.raises(StoreError, match=rf"network file system \({kind}\).+state_url"):
            notify(sqlite)

    def test_the_kind_of_a_local_file_system_is_known(self, tmp_path):
        assert file_access.file_system(Path("/proc").stat().st_dev) == "proc"

    def test_the_fallback_refuses_a_folder_of_another_user(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        store = fallback_store.__wrapped__()
        assert notify(store) == 1
        os.chown(Path(store.location).parent, 12345, -1)
        store.close()
        with pytest.raises(StoreError, match="others may write"):
            notify(store)

    def test_it_is_created_again_after_it_was_deleted(self, sqlite, sqlite_path):
        notify(sqlite)
        for path in sqlite_path.parent.iterdir():
            path.unlink()
        assert notify(sqlite) == 1

    def test_a_file_of_a_later_format_is_left_alone(self, sqlite, sqlite_path, clock):
        notify(sqlite)
        sqlite.close()
        with sqlite3.connect(sqlite_path) as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(StoreError, match="expected state of format 2, got 99"):
            notify(sqlite)


class TestCorruptFile:
    """It is quarantined, and a new one begins empty, in the process that finds it."""

    def test_rubbish_is_quarantined(self, sqlite, sqlite_path, caplog):
        sqlite_path.parent.mkdir()
        sqlite_path.write_bytes(b"rubbish " * 1000)
        assert notify(sqlite) == 1
        assert (sqlite_path.parent / "state.sqlite.broken").read_bytes().startswith(b"rubbish")
        assert len(caplog.records) == 1

    def test_damage_found_later_is_quarantined_with_its_journal(self, sqlite, sqlite_path, clock):
        SharedBudget(sqlite, "key", clock=clock).reserve(COMMAND, 1e9)
        sqlite.close()
        content = bytearray(sqlite_path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        sqlite_path.write_bytes(content)
        other = SqliteStore(sqlite_path, clock=clock)
        budgets = [SharedBudget(store, "key", clock=clock) for store in (sqlite, other, sqlite)]
        reservations = [budget.reserve(COMMAND, 1e9) for budget in budgets]
        assert all(budget.snapshot().shared for budget in budgets)
        assert not any(reservation.may_send for reservation in reservations)
        assert len({reservation.due for reservation in reservations}) == 3
        other.close()

    def test_another_process_that_has_it_open_moves_on_to_the_new_one(self, sqlite, sqlite_path, clock):
        other = SqliteStore(sqlite_path, clock=clock)
        notify(sqlite)
        notify(other)
        sqlite._quarantine()
        assert [notify(sqlite), notify(other), Records(sqlite, "key").wakeups()] == [1, 2, 2]
        other.close()


class TestNoRoom:
    """Where nothing can be written, a share of the limit is used and nothing is lost."""

    def uses_a_share(self, store: SqliteStore, clock) -> None:
        budget = SharedBudget(store, "key", clock=clock)
        held = budget.reserve(COMMAND, 1e9)
        while not held.may_send:
            clock.advance(held.wait_seconds)
            held = budget.reserve(COMMAND, 1e9, held)
        assert budget.snapshot().requests_per_minute == 25

    def test_a_path_below_a_file_can_not_be_created(self, tmp_path, clock):
        (tmp_path / "file").touch()
        self.uses_a_share(SqliteStore(tmp_path / "file" / "state.sqlite", clock=clock), clock)

    def test_a_folder_that_can_not_be_written(self, clock):
        self.uses_a_share(SqliteStore(Path("/proc/self/state.sqlite"), clock=clock), clock)

    def test_a_full_disk(self, sqlite, clock):
        notify(sqlite)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal, so that a write beyond this size fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        try:
            self.uses_a_share(sqlite, clock)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert notify(sqlite) == 2


class TestReboot:
    """Times of another boot mean nothing: budgets begin anew, and so does the time of records."""

    def reboot(self, before: SqliteStore, clock, now: float = 5.0) -> SqliteStore:
        before.close()
        clock.now = now
        return SqliteStore(Path(before.location), clock=clock, boot=lambda: "the next boot")

    @pytest.mark.parametrize("now", [5.0, 1e6])
    def test_a_budget_begins_exhausted_and_is_not_stuck(self, sqlite, clock, now):
        before = SharedBudget(sqlite, "key", clock=clock)
        for _ in range(50):
            held = before.reserve(COMMAND, 1e9)
        budget = SharedBudget(self.reboot(sqlite, clock, now), "key", clock=clock)
        reservation = budget.reserve(COMMAND, 1e9, held)
        assert not reservation.may_send
        assert reservation.wait_seconds == pytest.approx(interval_within(100, 1))
        assert sum(budget.snapshot().used.values()) == 0

    def test_records_are_kept_and_their_time_begins_anew(self, sqlite, clock):
        sqlite.update("space", "a", lambda *_: (Write("1", 60.0), None))
        clock.advance(50)
        after = self.reboot(sqlite, clock)
        assert after.entries("space") == [Entry("a", "1", 0.0)]
        clock.advance(59)
        assert [entry.value for entry in after.entries("space")] == ["1"]

    def test_hosts_that_take_turns_with_one_file_are_refused(self, sqlite, clock):
        notify(sqlite)
        assert notify(self.reboot(sqlite, clock)) == 2
        with pytest.raises(StoreError, match="several hosts or virtual machines"):
            notify(sqlite)

    def test_the_present_boot_has_a_name(self):
        assert boot_id() == boot_id() != ""


VERSION_0_1_0 = """
CREATE TABLE boot (id TEXT NOT NULL);
INSERT INTO boot VALUES ('{boot}');
CREATE TABLE accounts (key TEXT PRIMARY KEY, seen REAL NOT NULL, arrival REAL NOT NULL, admitted REAL NOT NULL,
  delay REAL NOT NULL, pushed_at REAL NOT NULL, polled_at REAL NOT NULL, cool_until REAL NOT NULL,
  probe_until REAL NOT NULL, strikes REAL NOT NULL, epoch REAL NOT NULL);
INSERT INTO accounts VALUES ('key', 1000, 1000, 1000, 0, 1000, 900, 1000, 1000, 0, 1000);
CREATE TABLE grants (key TEXT NOT NULL, at REAL NOT NULL, class TEXT NOT NULL);
CREATE INDEX grants_at ON grants (key, at);
INSERT INTO grants VALUES ('key', 1000, 'command');
CREATE TABLE records (space TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, written REAL NOT NULL,
  ttl REAL NOT NULL, expires REAL NOT NULL, PRIMARY KEY (space, name));
CREATE INDEX records_expires ON records (expires);
INSERT INTO records VALUES ('key/claims', 'exec_1', 'ticket', 990, 60, 1050);
CREATE TABLE bells (space TEXT PRIMARY KEY, count INTEGER NOT NULL);
INSERT INTO bells VALUES ('key', 7);
PRAGMA user_version = 1;
"""


class TestVersion010:
    """A file of version 0.1.0 is migrated when it is opened."""

    @pytest.fixture
    def migrated(self, sqlite, sqlite_path):
        sqlite_path.parent.mkdir(mode=0o700)
        connection = sqlite3.connect(sqlite_path)
        connection.executescript(VERSION_0_1_0.replace("{boot}", boot_id()))
        connection.close()
        return sqlite

    def test_records_are_kept_with_their_times(self, migrated, clock):
        assert migrated.entries("key/claims") == [Entry("exec_1", "ticket", 10.0)]
        clock.advance(50)
        assert migrated.entries("key/claims") == []

    def test_budgets_begin_exhausted_and_the_wake_up_counter_at_zero(self, migrated, clock):
        budget = SharedBudget(migrated, "key", clock=clock)
        assert budget.reserve(COMMAND, 1e9).wait_seconds == pytest.approx(interval_within(100, 1))
        assert sum(budget.snapshot().used.values()) == 0
        assert budget.snapshot().shared
        assert Records(migrated, "key").wakeups() == 0

    def test_one_line_is_logged_and_nothing_of_the_old_tables_is_left(self, migrated, sqlite_path, caplog):
        caplog.set_level(logging.INFO)
        notify(migrated)
        migrated.close()
        notify(migrated)
        assert [record.levelname for record in caplog.records] == ["INFO"]
        assert "its records are kept" in caplog.text
        connection = sqlite3.connect(sqlite_path)
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        connection.close()
        assert tables == {"boot", "entries"}

    def test_a_migration_that_fails_leaves_the_file_as_it_was(self, migrated, sqlite_path):
        connection = sqlite3.connect(sqlite_path)
        connection.execute("DROP TABLE bells")
        connection.close()
        with pytest.raises(StoreError, match="bells"):
            notify(migrated)
        connection = sqlite3.connect(sqlite_path)
        assert connection.execute("SELECT name FROM records").fetchall() == [("exec_1",)]
        connection.close()
