"""The bytes, against the examples of the protocol's description."""

from __future__ import annotations

import pytest

from transports.network import wire
from transports.network.wire import Aio, Classic


def octets(text: str, length: int = 0) -> bytes:
    return bytes.fromhex(text).ljust(length, b"\0")


@pytest.mark.parametrize(
    ("packed", "example"),
    [
        (wire.handshake(), "2b 00 00 00 50 6c 61 69 6e 54 65 78 74"),
        (wire.classic(Classic.SESSION_PARAMS), "21 00 00 00"),
        (wire.version(), "33 00 00 00 0b 00 00 00"),
        (wire.session_features(), "37 00 00 00 03 00 00 00"),
        (wire.classic(Classic.AIO_SESSION_OPEN), "34 00 00 00"),
        (wire.classic(Classic.SESSION_COMPLETE), "04 00 00 00"),
    ],
)
def test_classic_messages(packed: bytes, example: str) -> None:
    assert packed == octets(example, 264)


def test_connection_data_counts_the_two_strings_behind_it() -> None:
    assert wire.connection_data() == octets("36 00 00 00 06 00 00 00 07 00 00 00", 264)
    assert (len(wire.CLIENT_NAME), len(wire.OPERATION)) == (6, 7)
    assert wire.OPERATION == b"nbdmode"


def test_session_params_reply_tells_of_asynchronous_io() -> None:
    assert wire.has_asynchronous_io(octets("24 00 00 00" + "00" * 12 + "01 00 00 00", 264))
    assert not wire.has_asynchronous_io(octets("24 00 00 00", 264))


def test_open_session_record() -> None:
    assert wire.record(Aio.OPEN_SESSION, 0, wire.open_session(64 << 10, 4)) == octets(
        "7a da 00 a1 02 00 00 00 10 00 00 00 00 00 00 0000 00 00 00 00 00 01 00 04 00 00 00 00 00 00 00"
    )


def test_set_res_pool_record() -> None:
    assert wire.record(Aio.SET_RES_POOL, 2, wire.SET_RES_POOL.pack(1)) == octets(
        "7a da 00 a1 16 00 00 00 04 00 00 00 02 00 00 00 01 00 00 00"
    )


def test_open_file_record_and_reply() -> None:
    path = b"[ds1] vm/vm.vmdk"
    assert wire.record(Aio.OPEN_FILE, 3, wire.open_file(len(path), write=False)) + path == octets(
        "7a da 00 a1 04 00 00 00 3c 00 00 00 03 00 00 00"
        "10 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 1e 00 00 00"
        + "00" * 36
        + "5b 64 73 31 5d 20 76 6d 2f 76 6d 2e 76 6d 64 6b"
    )
    assert wire.open_file(16, write=True)[20] == 0x1A
    opened = wire.opened_file(
        octets(
            "00 00 00 00 00 00 00 00 1f 2a 00 80 ff ff ff ff 02 00 00 00 1e 00 00 00 00 00 00 00"
            "00 00 00 00 04 00 00 00 00 02 00 00 28 08 00 00 ff 00 00 00 3f 00 00 00 00 00 00 00 00 00 00 00"
        )
    )
    assert opened.status == 0
    assert opened.handle == 0xFFFFFFFF80002A1F
    assert opened.capacity_bytes == 16 << 30
    assert opened.sector_bytes == 512


def test_read_request_of_129_sectors() -> None:
    request = wire.read_request(0xFFFFFFFF80002A1F, 512, 0x10200, 0)
    assert wire.record(Aio.IO, 6, request) == octets(
        "7a da 00 a1 07 00 00 00 2c 00 00 00 06 00 00 00"
        "1f 2a 00 80 ff ff ff ff 01 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00"
        "00 02 01 00 00 00 00 00 00 02 01 00 00 02 01 00 00 00 00 00"
    )
    assert wire.read_request(0xFFFFFFFF80002A1F, 512, 0x10200, 2)[12:16] == b"\x02\0\0\0"


def test_read_fragments() -> None:
    stored = wire.fragment(
        octets(
            "00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00"
            "00 02 01 00 00 00 00 00 00 00 01 00 00 00 01 00 00 00 00 00"
        )
    )
    assert (stored.offset, stored.total, stored.fragment_offset) == (512, 66048, 0)
    assert (stored.fragment_bytes, stored.wire_bytes) == (65536, 65536)
    packed = wire.fragment(
        octets(
            "00 00 00 00 00 00 00 00 01 00 00 00 02 00 00 00 00 02 00 00 00 00 00 00"
            "00 02 01 00 00 00 01 00 00 02 00 00 22 00 00 00 00 00 00 00"
        )
    )
    assert (packed.fragment_offset, packed.fragment_bytes, packed.wire_bytes) == (65536, 512, 34)
    assert packed.compression == 2


def test_write_fragments() -> None:
    first = wire.write_request(0xFFFFFFFF80002A1F, 512, 66048, 0, 65536)
    second = wire.write_request(0xFFFFFFFF80002A1F, 512, 66048, 65536, 512)
    assert wire.record(Aio.IO, 7, first) == octets(
        "7a da 00 a1 07 00 00 00 2c 00 00 00 07 00 00 00 1f 2a 00 80 ff ff ff ff 00 00 00 00 00 00 00 00"
        "00 02 00 00 00 00 00 00 00 02 01 00 00 00 00 00 00 00 01 00 00 00 01 00 00 00 00 00"
    )
    assert wire.record(Aio.IO, 7, second) == octets(
        "7a da 00 a1 07 00 00 00 2c 00 00 00 07 00 00 00 1f 2a 00 80 ff ff ff ff 00 00 00 00 00 00 00 00"
        "00 02 00 00 00 00 00 00 00 02 01 00 00 00 01 00 00 02 00 00 00 02 00 00 00 00 00 00"
    )


def test_query_allocated_record() -> None:
    payload = wire.query_allocated(0xFFFFFFFF80002A1F, 64 << 10, 16 << 20, 16)
    assert wire.record(Aio.QUERY_ALLOCATED, 8, payload) == octets(
        "7a da 00 a1 0d 00 00 00 30 00 00 00 08 00 00 00 1f 2a 00 80 ff ff ff ff 00 00 00 00 00 00 00 00"
        "00 00 01 00 00 00 00 00 00 00 00 01 00 00 00 00 10 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
    )


@pytest.mark.parametrize(("chunks", "length"), [(1, 4), (16, 4), (32, 4), (33, 8), (16384, 2048)])
def test_bitmaps_are_whole_words(chunks: int, length: int) -> None:
    assert wire.bitmap_bytes(chunks) == length


def test_close_records() -> None:
    assert wire.record(Aio.CLOSE_FILE, 9, wire.CLOSE_FILE.pack(0xFFFFFFFF80002A1F)) == octets(
        "7a da 00 a1 05 00 00 00 08 00 00 00 09 00 00 00 1f 2a 00 80 ff ff ff ff"
    )
    assert wire.record(Aio.CLOSE_SESSION, 10, wire.CLOSE_SESSION.pack(0)) == octets(
        "7a da 00 a1 03 00 00 00 04 00 00 00 0a 00 00 00 00 00 00 00"
    )


def test_sizes_are_those_of_the_description() -> None:
    sizes = {
        wire.HEADER: 16,
        wire.OPEN_SESSION: 16,
        wire.SET_SOCK_OPTS: 12,
        wire.OPEN_FILE: 60,
        wire.OPEN_FILE_REPLY: 60,
        wire.IO: 44,
        wire.QUERY_ALLOCATED: 48,
        wire.ERROR: 16,
    }
    assert {struct.size for struct in sizes} == set(sizes.values())
    assert all(struct.size == size for struct, size in sizes.items())
