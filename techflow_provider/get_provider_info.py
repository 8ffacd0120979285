"""The provider's metadata, which Airflow reads before it imports any other module of the package.

It is in `provider.json`; the keys are those of Airflow's `provider_info.schema.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata."""
    info: dict[str, Any] = json.loads(Path(__file__).with_name("provider.json").read_text(encoding="utf-8"))
    return info
