"""Small helpers for tests that read and write disks."""

from __future__ import annotations

from transports import registry
from transports.base import DiskReader, DiskRef, DiskWriter, TransportMode
from transports.registry import Access, ModeOptions
from transports.vsphere.api import Vsphere
from transports.vsphere.model import DiskInfo, SnapshotInfo, VmInfo


def unwaited(_: float) -> None:
    """Tests do not wait between attempts."""


def read_all(reader: DiskReader) -> bytes:
    buffer = bytearray(reader.size_bytes)
    reader.read_into(0, memoryview(buffer))
    return bytes(buffer)


def disk_ref(vm: VmInfo, disk: DiskInfo, snapshot: SnapshotInfo | None = None) -> DiskRef:
    return DiskRef(
        vm_moref=vm.moref,
        vm_name=vm.name,
        disk_key=disk.key,
        path=disk.path,
        capacity_bytes=disk.capacity_bytes,
        datastore=disk.datastore,
        snapshot_moref=snapshot.moref if snapshot else None,
        is_delta=disk.path != disk.base_path,
    )


def open_reader(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: ModeOptions | None = None
) -> DiskReader:
    """A reader that needs nothing but vSphere."""
    access = Access(vsphere=vsphere, options=options or ModeOptions())
    return registry.open_reader(access, disk, mode)


def open_writer(
    vsphere: Vsphere, disk: DiskRef, mode: TransportMode, options: ModeOptions | None = None
) -> DiskWriter:
    access = Access(vsphere=vsphere, options=options or ModeOptions())
    return registry.open_writer(access, disk, mode)
