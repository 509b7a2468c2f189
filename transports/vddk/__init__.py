"""The network modes through a VDDK that the user has, in place of vmhaul's own NFC client. Nothing needs it.

Words: **VDDK** is VMware's library, which the user downloads and unpacks on the proxy; **nbdkit** is a program that
serves a disk by the NBD protocol, and its **vddk plugin** is what calls VDDK; **libnbd** is what speaks to nbdkit. One nbdkit
is one disk, ends with its reader, and is joined to it by a pair of sockets that nobody else can reach.

The package promises the contracts of `transports.base`. VDDK logs in to vCenter by itself, so it needs an account of its
own, whose password lies in a file on the proxy: it is never an argument, in the environment, or sent to a proxy.
"""

from __future__ import annotations

from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.vddk.disks import VddkReader, VddkWriter
from transports.vddk.nbdkit import NbdkitDisk, vddk_missing
from transports.vddk_options import NetworkClient, VddkOptions
from transports.vsphere.api import Vsphere

__all__ = ["NetworkClient", "VddkOptions", "open_reader", "open_writer", "vddk_missing"]


def open_reader(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: VddkOptions
) -> DiskReader:
    """TransportUnavailableError with VDDK's own words when the disk cannot be opened."""
    return VddkReader(
        NbdkitDisk(vsphere.server_address(), disk, mode, options, write=False), mode, options
    )


def open_writer(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: VddkOptions
) -> DiskWriter:
    """Of a VM that is off. Errors as open_reader."""
    return VddkWriter(NbdkitDisk(vsphere.server_address(), disk, mode, options, write=True), mode)
