"""The statements of the store in a database, and how PostgreSQL, MySQL and SQLite differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from techflow_provider.state.optimistic import CLOCK_TOLERANCE_SECONDS

# The parts of the statements in braces depend on the database, or are these.
TERMS: Mapping[str, str] = {
    "row": "value, version, written_at, expires_at",
    "key": "namespace = :namespace AND name = :name",
    "one": "(SELECT 1 AS one) AS one",
    "times": "written_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL",
    "tolerance": f"{CLOCK_TOLERANCE_SECONDS}",
    "on_conflict": " ON CONFLICT DO NOTHING",
}
STATEMENTS: Mapping[str, str] = {
    "fetch": "SELECT {clock}, {row} FROM {one} LEFT JOIN {table} ON {key}",
    "list": """SELECT {clock}, {row}, name FROM {table}
        WHERE namespace = :namespace AND name >= :prefix AND (:end = '' OR name < :end) ORDER BY name""",
    "insert": """INSERT INTO {table} (namespace, name, {row})
        SELECT :namespace, :name, :value, :version, :written, :expires FROM {one}
        WHERE ABS({clock} - :now) <= {tolerance}{on_conflict}""",
    "replace": """UPDATE {table} SET value = :value, version = :version, written_at = :written, expires_at = :expires
        WHERE {key} AND version = :found AND ABS({clock} - :now) <= {tolerance}""",
    "delete": "DELETE FROM {table} WHERE {key} AND version = :found AND ABS({clock} - :now) <= {tolerance}",
    "purge": "DELETE FROM {table} WHERE expires_at <= :now",
}
INDEX = "CREATE INDEX IF NOT EXISTS techflow_state_expires_at ON {table} (expires_at)"


class Database(NamedTuple):
    """How the kinds of databases differ.

    :param terms: parts of the statements
    :param ddl: creates the table
    :param lock_all: lets one process at a time create the table
    :param begin: begins a transaction
    :param lock: locks a row and returns it; another process that vanishes then keeps no lock for long
    :param not_durable: follows a write whose commit need not wait for the disk
    """

    terms: Mapping[str, str]
    ddl: tuple[str, ...]
    lock_all: str = "SELECT 1"
    begin: str = "BEGIN"
    lock: str = "SELECT {clock}, {row} FROM {table} WHERE {key} FOR UPDATE"
    not_durable: str = ""


POSTGRESQL = Database(
    terms={"clock": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"},
    ddl=(
        """CREATE TABLE IF NOT EXISTS {table} (namespace TEXT COLLATE "C" NOT NULL, name TEXT COLLATE "C" NOT NULL,
        value TEXT NOT NULL, version TEXT NOT NULL, {times}, PRIMARY KEY (namespace, name)) WITH (fillfactor = 50)""",
        INDEX,
    ),
    lock_all="SELECT pg_advisory_xact_lock(8390031)",
    begin="BEGIN; SET LOCAL lock_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '5s'",
    not_durable=" RETURNING set_config('synchronous_commit', 'off', true)",
)
MYSQL = Database(
    terms={"clock": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000e0", "on_conflict": ""},
    ddl=(
        """CREATE TABLE IF NOT EXISTS {table} (namespace VARCHAR(190) NOT NULL, name VARCHAR(500) NOT NULL,
        value MEDIUMTEXT NOT NULL, version VARCHAR(32) NOT NULL, {times}, PRIMARY KEY (namespace, name),
        INDEX techflow_state_expires_at (expires_at)) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin""",
    ),
)
SQLITE = Database(
    terms={"clock": "((julianday('now') - 2440587.5) * 86400.0)"},
    ddl=(
        """CREATE TABLE IF NOT EXISTS {table} (namespace TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
        version TEXT NOT NULL, {times}, PRIMARY KEY (namespace, name)) WITHOUT ROWID""",
        INDEX,
    ),
    begin="BEGIN IMMEDIATE",
    lock=STATEMENTS["fetch"],
)
DATABASES = {"postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL, "sqlite": SQLITE}
# The modules of the drivers that a URL need not name.
DRIVERS = {
    "postgresql": (("psycopg2", "psycopg2"), ("psycopg", "psycopg")),
    "mysql": (("MySQLdb", "mysqldb"), ("pymysql", "pymysql")),
}
LIBPQ = {"connect_timeout": 15, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3}
MYSQL_TIMEOUTS = {"connect_timeout": 15, "read_timeout": 15, "write_timeout": 15}
# Options of the drivers, which those of the URL precede. PgBouncer can't keep the statements that psycopg prepares.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "psycopg2": {**LIBPQ, "tcp_user_timeout": 15000},
    "psycopg": {**LIBPQ, "tcp_user_timeout": 15000, "prepare_threshold": None},
    "mysqldb": MYSQL_TIMEOUTS,
    "pymysql": MYSQL_TIMEOUTS,
    "pysqlite": {"timeout": 15, "check_same_thread": False},
}
