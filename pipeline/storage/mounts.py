"""Which file system a directory is on, as the kernel tells it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

MOUNTS: Final = Path("/proc/self/mountinfo")
_NETWORK: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
    }
)


def is_network_mount(path: str | os.PathLike[str], mounts: Path = MOUNTS) -> bool:
    """Whether a directory is reached over a network, where an error may be over in a moment. False where
    that cannot be told. File systems of user space (sshfs, s3fs) count as such.
    """
    try:
        device = Path(path).stat().st_dev
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw; the fields before the dash vary.
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 2 and fields[2] == wanted and after:  # noqa: PLR2004 - position of the device
            kind = after.split()[0]
            return kind in _NETWORK or kind == "fuse" or kind.startswith("fuse.")
    return False
