"""What a proxy does with disks by HotAdd, run as the only program of a guest (see test_real_guest.py).

The backup server's part, attaching and detaching, is asked of the host over the console.
"""

import hashlib

from vmhaul_lab.guest_init import ask, say

from transports.base import DiskRef, Presented, ReadRequest, TransportMode
from transports.block_devices import list_devices
from transports.hotadd import missing, open_reader, open_writer
from transports.machine import Machine, own_vm_uuid

_PIECE_BYTES = 1 << 20


class Presenter:
    """Asks the host, which attaches the disk to this machine."""

    def __init__(self, disk: DiskRef) -> None:
        self._disk = disk

    def present(self, mode: TransportMode, *, write: bool) -> Presented:
        answer = ask("present", {"path": self._disk.path, "write": write})
        assert isinstance(answer, dict)
        return Presented(disk=self._disk, mode=mode, **answer)

    def withdraw(self, mode: TransportMode) -> None:
        ask("withdraw", {"path": self._disk.path, "devices": _names()})


def _names() -> list[str]:
    return [device.name for device in list_devices(Machine())]


def _disk(path: str, capacity_bytes: int) -> DiskRef:
    return DiskRef(
        vm_moref="vm-1",
        vm_name="vm",
        disk_key=2000,
        path=path,
        capacity_bytes=capacity_bytes,
        datastore="ds",
    )


def _read(path: str, capacity_bytes: int) -> str:
    disk = _disk(path, capacity_bytes)
    reader = open_reader(Presenter(disk), Machine(), disk)
    try:
        buffers = {
            offset: memoryview(bytearray(min(_PIECE_BYTES, capacity_bytes - offset)))
            for offset in range(0, capacity_bytes, _PIECE_BYTES)
        }
        requests = (ReadRequest(offset=offset, buffer=buffer) for offset, buffer in buffers.items())
        for _ in reader.read_many(requests):
            pass
        digest = hashlib.sha256()
        for buffer in buffers.values():
            digest.update(buffer)
        return digest.hexdigest()
    finally:
        reader.close()


def _write(path: str, capacity_bytes: int) -> None:
    disk = _disk(path, capacity_bytes)
    writer = open_writer(Presenter(disk), Machine(), disk)
    try:
        for offset in range(0, capacity_bytes, _PIECE_BYTES):
            writer.write_from(offset, memoryview(bytes([offset // _PIECE_BYTES + 1]) * _PIECE_BYTES))
        writer.flush()
    finally:
        writer.close()


def main() -> list[str]:
    """Do what the host orders; answers the names of the devices that are left."""
    say("up", {"uuid": own_vm_uuid(Machine()), "missing": missing(Machine()), "devices": _names()})
    while order := ask("ready"):
        assert isinstance(order, dict)
        if order["write"]:
            _write(order["path"], order["capacity_bytes"])
        else:
            say("sha256", _read(order["path"], order["capacity_bytes"]))
    return _names()
