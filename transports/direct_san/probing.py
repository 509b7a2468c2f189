"""Whether this machine sees the LUNs of a datastore, for the look around that a proxy takes."""

from __future__ import annotations

import os
from typing import Final

from transports.base import DatastoreRef
from transports.direct_san.access import missing, wait_for
from transports.direct_san.errors import DamagedMetadataError
from transports.direct_san.luns import OpenDatastore, Wait, open_datastore
from transports.direct_san.portals import portals_of
from transports.errors import TransportError
from transports.machine import Machine
from transports.reached import Reached

_VMFS: Final = "VMFS"
_PATIENCE_S: Final = 1.0
"""A site has many datastores that a proxy does not see: none may hold up the look at the others."""


def probe(machine: Machine, datastore: DatastoreRef, *, wait: Wait = wait_for) -> Reached | None:
    """What was found; None for a datastore that is no VMFS. Raises nothing that a LUN may cause."""
    if datastore.kind.upper() != _VMFS:
        return None
    lacks = missing(machine)
    if lacks:
        return Reached(readable=False, writable=False, reason=lacks)
    try:
        opened = open_datastore(machine, datastore, write=False, wait=wait, patience_s=_PATIENCE_S)
    except TransportError as error:
        return Reached(readable=False, writable=False, reason=str(error))
    try:
        opened.look(datastore)
    except (TransportError, DamagedMetadataError) as error:
        return Reached(readable=False, writable=False, reason=f"datastore {datastore.name}: {error}")
    finally:
        opened.close()
    reason = _why_not_writable(opened)
    portals = portals_of(machine, opened.devices)
    return Reached(readable=True, writable=not reason, reason=reason, portals=portals)


def _why_not_writable(opened: OpenDatastore) -> str:
    """Asked without opening for writing: closing such a descriptor makes udev look into the LUN."""
    for device in opened.devices:
        if device.read_only:
            return f"{device.node} is read-only on this machine: restores over SAN need it writable"
        if not os.access(device.node, os.W_OK):
            return f"the proxy may not write to {device.node}: restores over SAN need that"
    return ""
