"""An ESXi host that says what a fuzzer makes up, to a reader of a disk of 1 MiB."""

from __future__ import annotations

import struct
from typing import Any, Final

from transports.base import DiskRef, ReadRequest, TransportMode
from transports.errors import PermanentTransportError
from transports.network import wire
from transports.network.carrier import Carrier
from transports.network.options import Compression, NetworkOptions
from transports.network.reader import NfcDiskReader
from transports.network.session import NfcSession
from transports.network.wire import Aio, Classic

CAPACITY_BYTES: Final = 1 << 20
REQUEST_BYTES: Final = 4096
_ANSWER: Final = 3
"""The reader's operations before its first read: open session, options twice, open file; 4 asks for
allocation."""


class FedSocket:
    """Answers with given bytes and then with the end of the connection; takes everything."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def recv_into(self, view: memoryview) -> int:
        part = self._data[: len(view)]
        view[: len(part)] = part
        self._data = self._data[len(part) :]
        return len(part)

    def sendall(self, data: bytes) -> None:
        del data

    def sendmsg(self, parts: list[Any]) -> int:
        return sum(map(len, parts))

    def settimeout(self, timeout_s: float) -> None:
        del timeout_s

    def gettimeout(self) -> float:
        return 60.0

    def close(self) -> None:
        return


class FedOpener:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.mode = TransportMode.NBD
        self.options = NetworkOptions(
            request_bytes=REQUEST_BYTES, buffer_bytes=64 << 10, compression=Compression.ZLIB
        )
        self.disk = DiskRef(
            vm_moref="vm-1",
            vm_name="vm",
            disk_key=2000,
            path="[ds] vm/vm.vmdk",
            capacity_bytes=CAPACITY_BYTES,
            datastore="ds",
        )

    def open(self) -> NfcSession:
        data, self._data = self._data, b""  # a second connection is closed at once
        session = NfcSession(Carrier(FedSocket(data), "host:902"), "host:902")  # type: ignore[arg-type]
        session.shake_hands(tag=True)
        session.open_session(self.options.buffer_bytes, self.options.buffer_count)
        session.open_file(self.disk.path, write=False)
        if session.file.capacity_bytes != CAPACITY_BYTES:  # as the real opener refuses it
            raise PermanentTransportError("another disk")
        return session


def read_a_disk(data: bytes) -> None:
    reader = NfcDiskReader(FedOpener(data))  # type: ignore[arg-type]
    try:
        requests = [
            ReadRequest(offset=number * REQUEST_BYTES, buffer=memoryview(bytearray(REQUEST_BYTES)))
            for number in range(4)
        ]
        for done in reader.read_many(iter(requests)):
            assert any(done is request for request in requests)
        list(reader.allocated_extents(0, min(reader.size_bytes, CAPACITY_BYTES)))
    finally:
        reader.close()


def good_answers() -> bytes:
    """What a host says that does everything right: two stored fragments, then compressed ones."""
    parts = [
        wire.classic(Classic.SESSION_PARAMS_REPLY, struct.pack("<IIII", 0, 0, 0, 1)),
        wire.classic_words(Classic.VERSION, 11),
        wire.classic(Classic.AIO_SESSION_OPEN),
        wire.record(Aio.OPEN_SESSION, 0, b""),
        wire.record(Aio.SET_SOCK_OPTS, 1, b""),
        wire.record(Aio.SET_RES_POOL, 2, b""),
        wire.record(
            Aio.OPEN_FILE,
            3,
            wire.OPEN_FILE_REPLY.pack(0, 7, 2, 0, 0, CAPACITY_BYTES, 512, 0, 0, 0),
        ),
        _allocated(4, 1, b"\1\0\0\0"),
    ]
    for number in range(4):
        offset = number * REQUEST_BYTES
        half = REQUEST_BYTES // 2
        for start in (0, half):
            io = wire.IO.pack(0, 1, 0, offset, REQUEST_BYTES, start, half, half, 0)
            parts.append(wire.record(Aio.IO, 5 + number, io) + bytes(half))
    parts.append(_allocated(9, 16, b"\xff\x0f\0\0"))
    parts.append(wire.record(Aio.CLOSE_FILE, 10, b""))
    parts.append(wire.record(Aio.CLOSE_SESSION, 11, b""))
    return b"".join(parts)


def _allocated(operation: int, count: int, bitmap: bytes) -> bytes:
    payload = wire.QUERY_ALLOCATED.pack(0, 0, 64 << 10, 0, count, 0)
    return wire.record(Aio.QUERY_ALLOCATED, operation, payload) + bitmap
