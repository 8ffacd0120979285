"""Fixtures of the tests that run tasks in this process."""

from __future__ import annotations

from tests.operators.attempts import current_context, served

__all__ = ["current_context", "served"]
