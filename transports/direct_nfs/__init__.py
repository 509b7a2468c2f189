"""Direct storage access over NFS: disks read and written on the export, past the ESXi hosts.

Words: the **export** is the directory of an NFS server that a datastore is; the **library** is libnfs, which
speaks NFS in this process, as any user; a **mount** is that export in this machine's own directory tree, where
an administrator has put it; the **flat file** beside a disk's descriptor is the disk, byte for byte.

The package promises the contracts of `transports.base`, creates and removes nothing on an export (the `.lck`
files there are the hosts'), and says nothing about retries: those are for `transports.wrappers`.
"""

from __future__ import annotations

from transports.direct_nfs.disks import open_reader, open_writer
from transports.direct_nfs.library import library_missing
from transports.direct_nfs.mounts import nfs_mounts
from transports.direct_nfs.probe import probe
from transports.machine import Machine
from transports.nfs_options import NfsClient, NfsOptions

__all__ = ["NfsClient", "NfsOptions", "missing", "open_reader", "open_writer", "probe"]


def missing(options: NfsOptions, machine: Machine) -> str:
    """What this machine lacks; empty: the mode can be offered."""
    no_library = library_missing()
    if options.client is NfsClient.LIBRARY:
        return no_library
    if options.client is NfsClient.AUTO and not no_library:
        return ""
    if nfs_mounts(machine):
        return ""
    why = no_library if options.client is NfsClient.AUTO else "nfs_client is set to mount"
    return f"{why}, and no NFS export is mounted here"
