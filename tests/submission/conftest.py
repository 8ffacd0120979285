"""The clients of `tests/client`, with which an execution is started."""

from __future__ import annotations

from tests.client.conftest import ask, near, workflow_id

__all__ = ["ask", "near", "workflow_id"]
