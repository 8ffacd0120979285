"""The commands about executions: the history, and starting one."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from techflow_provider.client import Execution, ExecutionState, InvalidParameterError
from techflow_provider.client.history import ExecutionSelector
from techflow_provider.client.parsing import Json, quote
from techflow_provider.commands.report import Report, facts, listing
from techflow_provider.commands.session import open_client

COLUMNS = ("id", "workflow_id", "status", "started_at", "finished_at", "error")


def list_executions(args: Namespace) -> Report:
    """List the execution history, newest first (List Executions)."""
    with open_client(args.conn_id) as client:
        found = client.executions.list(args.workflow_id, args.status)
    newest = sorted(found, key=lambda each: each.started_at.timestamp() if each.started_at else 0.0, reverse=True)
    return listing([each.to_dict() for each in newest[: args.limit]], COLUMNS)


def trigger(args: Namespace) -> Report:
    """Start an execution (Trigger Execution), and wait for its end if asked to."""
    payload = read_payload(args.payload)
    progress = Progress()
    with open_client(args.conn_id, progress.sleep) as client:
        execution = client.workflows.execute(args.workflow_id, payload)
        if args.wait and not execution.ended:
            progress.begin(execution)
            try:
                execution = client.executions.wait(ExecutionSelector(execution.id), args.poll_interval, args.timeout)
            finally:
                progress.end()
    value = {**execution.to_dict(), "state": execution.state.value}
    failed = execution.state is ExecutionState.FAILED
    return Report(value, facts({name: value.get(name) for name in COLUMNS}), 1 if failed else 0)


def read_payload(text: str | None) -> dict[str, Json] | None:
    """Return a payload that was typed.

    :raises InvalidParameterError: it is no JSON object
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidParameterError("--payload", quote(text), "a JSON object") from error
    if not isinstance(value, dict):
        raise InvalidParameterError("--payload", quote(value), "a JSON object")
    return value


@dataclass
class Progress:
    """Tells on one line how long an execution has been waited for; on a stream that is no terminal, once.

    :param stream: where to
    :param clock: monotonic seconds
    :param pause: how to wait
    """

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep
    _execution: Execution | None = None
    _began: float = 0.0

    def begin(self, execution: Execution) -> None:
        """Tell that an execution is waited for."""
        self._execution, self._began = execution, self.clock()
        if not self.stream.isatty():
            self._write(f"started execution {execution.id}; waiting for its end\n")

    def sleep(self, seconds: float) -> None:
        """Wait, and tell where things stand."""
        if self._execution is not None and self.stream.isatty():
            self._write(f"\rexecution {self._execution.id} has not ended after {self.clock() - self._began:.0f} s ")
        self.pause(seconds)

    def end(self) -> None:
        """Leave the line."""
        if self.stream.isatty():
            self._write("\n")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()
