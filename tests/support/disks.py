"""Small helpers for tests that read and write disks."""

from __future__ import annotations

from transports.base import DiskReader, DiskRef
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
