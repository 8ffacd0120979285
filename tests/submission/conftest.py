"""The clients of `tests/client`, with which an execution is started."""

from __future__ import annotations

from tests.client.conftest import ask, connect, workflow_id

__all__ = ["ask", "connect", "workflow_id"]
