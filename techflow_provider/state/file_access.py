"""What a file and its folder must be like to hold shared state: nobody else's, and on a disk of this host."""

from __future__ import annotations

import os
import stat
from pathlib import Path

PRIVATE_MODE = 0o600
MOUNTS = Path("/proc/self/mountinfo")
# Locks and shared memory don't reach from one kernel to another, even where these file systems seem to support them.
NETWORK_FILE_SYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "orangefs"}
    | {"smb3", "smbfs", "virtiofs", "vboxsf"}
)
LOCAL_FUSE = frozenset({"fuse.fuse-overlayfs", "fuse.ecryptfs", "fuse.mergerfs", "fuse.unionfs"})


def check_folder(folder: Path, mode: int, *, may_be_link: bool = True) -> None:
    """Check that only those who share the state can put something into a folder.

    :param mode: the mode of the files in it
    :raises OSError: others can, it isn't a folder, or another kernel can use it
    """
    found = folder.stat() if may_be_link else folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} isn't a folder")
    _check_access(folder, found, mode)
    kind = file_system(found.st_dev)
    if kind in NETWORK_FILE_SYSTEMS or (kind.startswith("fuse") and kind not in LOCAL_FUSE and kind != "fuseblk"):
        remedy = (
            "put the file on a disk of this host, or leave [techflow] state_url empty where there are several hosts"
        )
        raise OSError(f"{folder} is on a network file system ({kind}), which several hosts may use at once: {remedy}")


def check_file(path: Path, mode: int) -> None:
    """Check that a file is a regular one that only those who share the state can write to.

    :raises OSError: it isn't
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise PermissionError("it isn't a regular file, perhaps a symbolic link")
    _check_access(path, found, mode)


def _check_access(path: Path, found: os.stat_result, mode: int) -> None:
    is_shared = bool(mode & stat.S_IWGRP) and found.st_gid in {os.getegid(), *os.getgroups()}
    is_own = found.st_uid in (0, os.geteuid()) or is_shared
    if is_own and not found.st_mode & (stat.S_IWOTH if is_shared else stat.S_IWOTH | stat.S_IWGRP):
        return
    remedy = (
        f"it should belong to user {os.geteuid()} and be writable for nobody else; to share it among the users of a "
        "group, set [techflow] state_file_mode to 0660 for all of them"
    )
    permissions = f"user {found.st_uid}, group {found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
    raise PermissionError(f"others may write to {path} ({permissions}): {remedy}")


def file_system(device: int) -> str:
    """Return the kind of file system that a device holds; empty where the host doesn't say."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    parts = (line.partition(" - ") for line in mounts)
    return next((kind.split()[0] for mount, _, kind in parts if mount.split()[2:3] == [number]), "")
