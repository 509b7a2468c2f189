"""Library or mount: which of the two does a piece of work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from transports.base import DatastoreRef
from transports.direct_nfs.connection import ServerSilentError
from transports.direct_nfs.library import library_missing
from transports.direct_nfs.mounts import NfsMount, find_mount
from transports.errors import TransportUnavailableError
from transports.machine import Machine
from transports.nfs_options import NfsClient, NfsOptions

_T = TypeVar("_T")


def by_client(
    options: NfsOptions,
    machine: Machine,
    storage: DatastoreRef,
    *,
    library: Callable[[], _T],
    mount: Callable[[NfsMount, Path], _T],
) -> _T:
    """Do it as the options say. With AUTO what the library was refused is tried through a mount, but never for a
    server that was silent: the kernel would wait for it.

    `mount` is given the mount and where the datastore begins below it.
    """
    chosen = options.client
    if chosen is NfsClient.LIBRARY:
        return library()
    found = find_mount(machine, storage)
    if chosen is NfsClient.MOUNT or library_missing():
        if found is None:
            raise TransportUnavailableError(_not_mounted(storage, chosen))
        return mount(*found)
    try:
        return library()
    except ServerSilentError:
        raise
    except TransportUnavailableError as error:
        if found is None:
            raise
        try:
            return mount(*found)
        except TransportUnavailableError as other:
            said = dict.fromkeys((str(error), str(other)))
            raise TransportUnavailableError("; ".join(said)) from other


def _not_mounted(storage: DatastoreRef, chosen: NfsClient) -> str:
    hosts = " or ".join(storage.nfs_hosts)
    why = "nfs_client is set to mount" if chosen is NfsClient.MOUNT else library_missing()
    return f"{hosts}:{storage.nfs_path} is not mounted here, and {why}; mount it or install libnfs"
