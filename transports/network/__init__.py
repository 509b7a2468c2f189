"""Network mode (NBD, NBDSSL): disks read and written through the ESXi host, over its TCP port 902.

Words: a **ticket** is vCenter's permission for one connection, used once; **authd** is the host's
doorman on port 902, who takes the ticket; the **carrier** is what the bytes travel on after him (the
bare TCP connection for nbd, a second TLS session for nbdssl); a **fragment** is one piece of the answer
to a read.

The package promises the contracts of `transports.base` and nothing about retries: a connection that
fails is finished, and opening again (with a new ticket) is for `transports.wrappers`.
"""

from __future__ import annotations

from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.errors import PermanentTransportError
from transports.network.options import Compression, NetworkOptions
from transports.network.reader import NfcDiskReader
from transports.network.session import NfcOpener
from transports.network.writer import NfcDiskWriter
from transports.vsphere.api import Vsphere

__all__ = ["Compression", "NetworkOptions", "open_reader", "open_writer"]

_MODES = (TransportMode.NBDSSL, TransportMode.NBD)


def open_reader(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: NetworkOptions | None = None
) -> DiskReader:
    """Open a disk of a snapshot (or of a VM that is off) for reading.

    TransportUnavailableError when this proxy cannot reach the host in this mode, PeerIdentityError when
    the host is not the one the ticket names.
    """
    opener = NfcOpener(vsphere, disk, _network_mode(mode), options or NetworkOptions(), write=False)
    return NfcDiskReader(opener)


def open_writer(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: NetworkOptions | None = None
) -> DiskWriter:
    """Open a disk of a VM that is off for writing. Errors as open_reader."""
    opener = NfcOpener(vsphere, disk, _network_mode(mode), options or NetworkOptions(), write=True)
    return NfcDiskWriter(opener)


def _network_mode(mode: TransportMode) -> TransportMode:
    if mode not in _MODES:
        raise PermanentTransportError(f"{mode} is no network mode; use nbdssl or nbd")
    return mode
