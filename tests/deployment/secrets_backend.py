"""A secrets backend as a company writes its own: connections are kept in a file, and one is derived from another."""

from __future__ import annotations

from typing import Any

from airflow.secrets.local_filesystem import LocalFilesystemBackend


class OwnBackend(LocalFilesystemBackend):
    """Reads the file anew for each connection; `techflow_custom` is what the file has for `techflow_file`."""

    def get_connection(self, conn_id: str, *arguments: Any, **options: Any) -> Any:
        """Return a connection."""
        found = super().get_connection("techflow_file" if conn_id == "techflow_custom" else conn_id)
        if found is not None:
            found.conn_id = conn_id
        return found
