"""How many executions does a task start when the response to its start is a 502 or lost, with several providers?

Each provider's own hook makes its own call that triggers a run, against a local server that acts on it and then
spoils the response. A task is retried as Airflow does with `retries=2`: up to three attempts, until the call succeeds.
Only the server's address is changed in the other hooks; waits between retries are theirs.

Needs an environment with Airflow 3 and the providers http, dbt-cloud, databricks, fivetran-async and hightouch
(`make bench` makes one).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import uuid4

# Read by Airflow when it is imported.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-"))
# What Airflow logs to the standard output would hide the table.
TABLE, sys.stdout = sys.stdout, Path(os.devnull).open("w")  # noqa: SIM115 - open to the end
os.environ.update(AIRFLOW__TECHFLOW__HISTORY_LAG="2", AIRFLOW__CORE__LOAD_EXAMPLES="False")

from techflow_provider.hooks.techflow import TechFlowHook  # noqa: E402 - see above
from techflow_provider.sandbox import Fault, Sandbox  # noqa: E402 - see above
from techflow_provider.submission.airflow import ExecutionStarter, name_of  # noqa: E402 - see above
from techflow_provider.submission.model import Submitter  # noqa: E402 - see above

if TYPE_CHECKING:
    from tests.benchmarks.local_server import LocalServer, QuietHandler, serving
    from tests.benchmarks.rows import Row, add_option, hand_over
else:
    from local_server import LocalServer, QuietHandler, serving
    from rows import Row, add_option, hand_over

TRIES = 3
WORKFLOW = "wf_1"


@dataclass(frozen=True)
class Cause:
    """What happens to the first requests that trigger a run.

    :param kind: `502`, or `lost` for a connection that is closed without a response
    :param times: how many of them it happens to; None means all
    :param acts: whether the server has acted on the request
    """

    kind: str
    times: int | None
    acts: bool = True

    def __str__(self) -> str:
        often = "always" if self.times is None else "once"
        return f"{self.kind} {often}{'' if self.acts else ', no effect'}"


TROUBLES = (
    Cause("502", 1),
    Cause("lost", 1),
    Cause("502", None),
    Cause("lost", None),
    Cause("502", 1, acts=False),
)
CONNECTOR = {"succeeded_at": "2026-01-01T00:00:00Z", "failed_at": None, "paused": False, "service": "s", "schema": "s"}
# A response in which each of the hooks finds what it needs.
RESPONSE = json.dumps({"id": "1", "run_id": 1, "code": "Success", "data": {"id": 1, **CONNECTOR}}).encode()


class Server(LocalServer):
    """Counts what it was asked to start, and spoils responses.

    :param trouble: how
    """

    def __init__(self, trouble: Cause) -> None:
        super().__init__(Handler)
        self.trouble = trouble
        self.started = 0
        self.asked = 0


class Handler(QuietHandler):
    """Answers every GET, and takes every POST for one that starts a run."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        """Answer."""
        self.respond(200, RESPONSE)

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        """Start something, and spoil the response."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        trouble = self.server.trouble
        self.server.asked += 1
        struck = trouble.times is None or self.server.asked <= trouble.times
        self.server.started += trouble.acts or not struck
        if struck and trouble.kind == "lost":
            self.close_connection = True
            return
        self.respond(502 if struck else 200, RESPONSE)


def connect(conn_id: str, url: str, **fields: Any) -> None:
    """Let Airflow find a connection to a server."""
    parts = urlsplit(url)
    connection = {"host": parts.hostname, "port": parts.port, "schema": "http", "login": "1", "password": "p", **fields}
    os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"] = json.dumps(connection)


def fivetran(url: str) -> None:
    """Trigger a sync as `FivetranOperator` does."""
    connect("fivetran_default", url, conn_type="fivetran")
    hook = import_module("fivetran_provider_async.hooks").FivetranHook()
    hook.api_protocol, hook.api_host = "http", urlsplit(url).netloc
    hook.start_fivetran_sync("connector")


def databricks(url: str) -> None:
    """Trigger a run as `DatabricksRunNowOperator` does."""
    connect("databricks_default", url, conn_type="databricks")
    hook = import_module("airflow.providers.databricks.hooks.databricks").DatabricksHook()
    hook.run_now({"job_id": 1})


def hightouch(url: str) -> None:
    """Trigger a sync as `HightouchTriggerSyncOperator` does."""
    connect("hightouch_default", url, conn_type="hightouch")
    module = import_module("airflow_provider_hightouch.hooks.hightouch")
    vars(module)["HIGHTOUCH_API_BASE_V3"] = f"{url}/api/v3/"
    module.HightouchHook().start_sync(sync_id="1")


def dbt_cloud(url: str) -> None:
    """Trigger a job as `DbtCloudRunJobOperator` does."""
    connect("dbt_cloud_default", url, conn_type="dbt_cloud", host=None, port=None)
    published = import_module("airflow.providers.dbt.cloud.hooks.dbt").DbtCloudHook

    class Local(published):  # type: ignore[misc,valid-type]
        """Talks to the local server; the published hook knows https alone."""

        def get_conn(self, *args: Any, **kwargs: Any) -> Any:
            """Return the session."""
            session = super().get_conn(*args, **kwargs)
            self.base_url = f"{url}/"
            return session

    Local().trigger_job_run(job_id=1, cause="benchmark", account_id=1)


def http(url: str) -> None:
    """Send a POST as `HttpOperator` does."""
    connect("http_default", url, conn_type="http")
    import_module("airflow.providers.http.hooks.http").HttpHook(method="POST").run(f"workflows/{WORKFLOW}/execute")


def succeeds(call: Callable[[], object]) -> bool:
    """Retry a task's call as Airflow does with `retries=2`, and return whether it succeeded."""
    for _ in range(TRIES):
        try:
            call()
        except Exception:  # noqa: BLE001 - hooks raise whatever they like, and Airflow retries
            continue
        return True
    return False


def peer(trigger: Callable[[str], None], trouble: Cause) -> tuple[int, bool]:
    """Return the executions that a task of another provider starts, and whether it succeeds."""
    with serving(Server(trouble)) as server:
        done = succeeds(lambda: trigger(server.url))
        return server.started, done


def ours(trouble: Cause) -> tuple[int, bool]:
    """Return the same of this package, as `TechFlowTriggerWorkflowOperator` starts an execution."""
    sandbox = Sandbox(limit=10_000)
    sandbox.add_workflow("Report", id=WORKFLOW)
    kind, when = (
        ("lost_response", None) if trouble.kind == "lost" else ("status", "after" if trouble.acts else "before")
    )
    sandbox.faults.add(Fault(kind, status=502, when=when, times=trouble.times, path="/workflows/*/execute"))  # type: ignore[arg-type]
    identity = Submitter(name_of("dag", str(uuid4()), "task"), "1")
    with sandbox.serve() as url:
        fields = {"conn_type": "techflow", "host": url, "port": None, "schema": None, "password": sandbox.api_keys[0]}
        connect("techflow_default", url, **fields, extra={"timeout": 2, "requests_per_minute": 10_000, "burst": 1000})
        done = succeeds(lambda: ExecutionStarter(TechFlowHook(), identity).start(WORKFLOW))
        return len(sandbox.executions), done


PEERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "fivetran": ("airflow-provider-fivetran-async", fivetran),
    "databricks": ("apache-airflow-providers-databricks", databricks),
    "hightouch": ("airflow-provider-hightouch", hightouch),
    "dbt-cloud": ("apache-airflow-providers-dbt-cloud", dbt_cloud),
    "http": ("apache-airflow-providers-http", http),
}


def main() -> int:
    """Print the table; 1 when a task of ours starts another number than one, or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_option(parser)
    with contextlib.redirect_stdout(TABLE):
        asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(f"executions started for one task, retries={TRIES - 1} (* the task failed)", file=TABLE)
    print(f"{'':24}" + "".join(f"{trouble!s:>20}" for trouble in TROUBLES), file=TABLE)
    own, others = [ours(trouble) for trouble in TROUBLES], {}
    show("techflow", own)
    for name, (distribution, trigger) in PEERS.items():
        others[name] = [peer(trigger, trouble) for trouble in TROUBLES]
        show(f"{name} {version(distribution)}", others[name])
    rows = list(rows_of(own, others))
    hand_over(asked.rows, *rows)
    return 0 if all(row.met for row in rows) else 1


def show(name: str, figures: list[tuple[int, bool]]) -> None:
    """Print a line."""
    cells = (f"{started:>19}{' ' if done else '*'}" for started, done in figures)
    print(f"{name:24}" + "".join(cells), file=TABLE, flush=True)


def rows_of(own: list[tuple[int, bool]], others: dict[str, list[tuple[int, bool]]]) -> Iterator[Row]:
    """Say how many executions each trouble led to, and how many of our tasks succeeded."""
    for number, (trouble, (started, _)) in enumerate(zip(TROUBLES, own, strict=True)):
        peers = {name: float(figures[number][0]) for name, figures in others.items()}
        what, n = f"executions of a task, {trouble}", f"1 task, {TRIES - 1} retries"
        yield Row(what, started, "", n, limit=1, bound="=", peers=peers)
    succeeded = sum(done for _, done in own)
    n = f"{len(own)} tasks"
    yield Row("tasks that succeed despite each of these", succeeded, "", n, limit=len(own), bound="=")


if __name__ == "__main__":
    sys.exit(main())
