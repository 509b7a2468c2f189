"""What a worker asks of the operating system under it: one face, for Linux and for Windows.

A worker that reads by the network modes and keeps in object storage asks nothing else of one. The functions
mean the same on both systems, and where they cannot, their text says so. Everything else that needs Linux
(directories as repositories, image files, the direct modes, HotAdd) is not imported on Windows at all;
`mypy --platform win32` in `make lint` follows the imports and says when it would be.
"""

from __future__ import annotations

import sys

if sys.platform == "win32":
    from transports.system.windows import (
        ENVIRONMENT,
        NAME,
        OPEN_FLAGS,
        Child,
        die_with_parent,
        lock_file,
        make_private_directory,
        memory_bytes,
        others_may_read,
        pread,
        read_file,
        replace_file,
        sync_directory,
        unlock_file,
        uptime_s,
        usable_cpus,
    )
else:
    from transports.system.linux import (
        ENVIRONMENT,
        NAME,
        OPEN_FLAGS,
        Child,
        die_with_parent,
        lock_file,
        make_private_directory,
        memory_bytes,
        others_may_read,
        pread,
        read_file,
        replace_file,
        sync_directory,
        unlock_file,
        uptime_s,
        usable_cpus,
    )

__all__ = [
    "ENVIRONMENT",
    "NAME",
    "OPEN_FLAGS",
    "Child",
    "die_with_parent",
    "lock_file",
    "make_private_directory",
    "memory_bytes",
    "others_may_read",
    "pread",
    "read_file",
    "replace_file",
    "sync_directory",
    "unlock_file",
    "uptime_s",
    "usable_cpus",
]
