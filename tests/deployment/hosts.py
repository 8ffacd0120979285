"""What makes a process believe that it runs on a host, or in a pod, of its own; and how a pod is killed."""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.servers import signal_group

# The variable that names the folder of the pods' homes.
PODS = "DEPLOYMENT_PODS"
PID = "pid"
# As in a container: a first process, which isn't the task's, and which takes everything with it when it is killed.
CONTAINER = ("--uts", "--pid", "--fork", "--mount-proc", "--kill-child")
NAMED = 'hostname "$HOSTNAME" && "$@"; exit $?'


@functools.cache
def namespaces() -> bool:
    """Whether processes can be given a host name and process ids of their own."""
    try:
        return subprocess.run(["unshare", *CONTAINER, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def on_host(command: Sequence[str], *namespace: str) -> list[str]:
    """Return a command that runs another one under the host name in its environment."""
    if not namespaces():
        return list(command)
    script = NAMED if namespace else NAMED.replace("&& ", "&& exec ")
    return ["unshare", *(namespace or ("--uts",)), "sh", "-c", script, "sh", *command]


def host_environment(home: Path) -> dict[str, str]:
    """Make an empty home, and return the variables that belong to it and to a host named like it."""
    temporary = home / "tmp"
    temporary.mkdir(parents=True)
    return {"HOME": str(home), "AIRFLOW_HOME": str(home / "airflow"), "TMPDIR": str(temporary), "HOSTNAME": home.name}


def pod_name(dag_id: str, task_id: str, map_index: int) -> str:
    """Return what the names of a task's pods begin with."""
    return f"{dag_id}.{task_id}.{'all' if map_index < 0 else map_index}".replace("_", "-")


def kill_pod(folder: Path, dag_id: str, task_id: str, map_index: int = -1) -> int:
    """Kill the latest process of a task, and return its process id."""
    homes = folder.glob(f"{pod_name(dag_id, task_id, map_index)}.*")
    latest = max(homes, key=lambda home: int(home.name.rpartition("-")[2]))
    pid = int((latest / PID).read_text())
    signal_group(pid, signal.SIGKILL)
    return pid


def kill_all_pods(folder: Path) -> None:
    """Kill what the executor has left running."""
    for path in folder.glob(f"*/{PID}"):
        pid = int(path.read_text())
        # The number may be in use by another process by now.
        if f"{PODS}={folder}".encode() in _environment_of(pid):
            signal_group(pid, signal.SIGKILL)


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
