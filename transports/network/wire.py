"""NFC's bytes: classic messages of the handshake and asynchronous I/O records after it.

All integers are little-endian. Each Struct stands with the sum of its fields; what a field means is
said once, where it is packed or unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

# ---- classic messages ----------------------------------------------------------------------------

CLASSIC_BYTES: Final = 264  # 4 (type) + 260 (fields, zero padded)


class Classic(IntEnum):
    SESSION_COMPLETE = 4  # also the host's refusal of a step
    SESSION_PARAMS = 33
    SESSION_PARAMS_REPLY = 36
    HANDSHAKE = 43
    VERSION = 51
    AIO_SESSION_OPEN = 52
    CONNECTION_DATA = 54
    SESSION_FEATURES = 55


OUR_VERSION: Final = 11  # what ESXi 8's own clients say
OLDEST_VERSION: Final = 3  # connection data came with 3
FEATURES: Final = 3  # bit 0 interruption, bit 1 host switch
CLIENT_NAME: Final = b"vmhaul"
OPERATION: Final = b"nbdmode"
TAG: Final = b"PlainText"  # of THUMBPRINT_SHA2, repeated in HANDSHAKE

_TYPE: Final = Struct("<I")  # 4
_TWO_WORDS: Final = Struct("<III")  # 12 = 4 (type) + 4 + 4
_FLAG_OFFSET: Final = 16


def classic(kind: Classic, body: bytes = b"") -> bytes:
    return (_TYPE.pack(kind) + body).ljust(CLASSIC_BYTES, b"\0")


def classic_words(kind: Classic, first: int, second: int = 0) -> bytes:
    return _TWO_WORDS.pack(kind, first, second).ljust(CLASSIC_BYTES, b"\0")


def handshake() -> bytes:
    return classic(Classic.HANDSHAKE, TAG)


def version() -> bytes:
    return classic_words(Classic.VERSION, OUR_VERSION)


def connection_data() -> bytes:
    """The message; CLIENT_NAME and OPERATION follow it, outside of the 264 bytes."""
    return classic_words(Classic.CONNECTION_DATA, len(CLIENT_NAME), len(OPERATION))


def session_features() -> bytes:
    return classic_words(Classic.SESSION_FEATURES, FEATURES)


def classic_type(message: bytes) -> int:
    return int(_TYPE.unpack_from(message)[0])


def classic_version(message: bytes) -> int:
    return int(_TWO_WORDS.unpack_from(message)[1])


def has_asynchronous_io(session_params_reply: bytes) -> bool:
    """False for ESXi 6.0, which knows only the older synchronous form."""
    return bool(_TYPE.unpack_from(session_params_reply, _FLAG_OFFSET)[0])


# ---- asynchronous I/O records --------------------------------------------------------------------

MAGIC: Final = 0xA100DA7A
HEADER: Final = Struct("<IIII")  # 16 = magic 4 + type 4 + payload bytes 4 + operation number 4


class Aio(IntEnum):
    ERROR = 1
    OPEN_SESSION = 2
    CLOSE_SESSION = 3
    OPEN_FILE = 4
    CLOSE_FILE = 5
    IO = 7
    SET_SOCK_OPTS = 9
    QUERY_ALLOCATED = 13
    SET_RES_POOL = 22


OPEN_SESSION: Final = Struct("<IIII")  # 16 = 0 + buffer bytes + buffer count + 0
SET_SOCK_OPTS: Final = Struct("<III")  # 12 = send buffer + receive buffer + flag
SET_RES_POOL: Final = Struct("<I")  # 4
OPEN_FILE: Final = Struct("<I12xII36x")  # 60 = path bytes 4 + 12 + file type 4 + flags 4 + 36
OPEN_FILE_REPLY: Final = Struct("<QQIIIQIIII8x")
# 60 = status 8 + handle 8 + file type 4 + flags 4 + 4 + capacity 8 + sector 4 + geometry 12 + 8
CLOSE_FILE: Final = Struct("<Q")  # 8 = handle
CLOSE_SESSION: Final = Struct("<I")  # 4
IO: Final = Struct("<QIIQIIIII")
# 44 = handle or status 8 + direction 4 + compression 4 + disk offset 8 + total 4
#      + fragment offset 4 + fragment bytes 4 + bytes on the wire 4 + 0 4
QUERY_ALLOCATED: Final = Struct("<QQQQQQ")
# 48 = handle 8 + 0 8 + chunk bytes 8 + start offset 8 + chunk count 8 + 0 8
QUERY_ALLOCATED_COUNT_OFFSET: Final = 32
ERROR: Final = Struct("<QII")  # 16 = code 8 + 0 4 + text bytes 4

NFC_DISK: Final = 2
OPEN_READ_ONLY: Final = 0x1E
OPEN_READ_WRITE: Final = 0x1A
DIRECTION_WRITE: Final = 0
DIRECTION_READ: Final = 1

# Nothing that a host says about itself is longer; larger lengths are a peer gone mad.
MAX_ERROR_TEXT_BYTES: Final = 64 << 10
MAX_PAYLOAD_BYTES: Final = 4 << 10

PERMISSION_ERROR: Final = 11
MEMORY_ERROR: Final = 5


def record(kind: Aio, operation: int, payload: bytes) -> bytes:
    """Header and payload. What the kind carries besides (path, data) is sent after it, uncounted."""
    return HEADER.pack(MAGIC, kind, len(payload), operation) + payload


def open_session(buffer_bytes: int, buffer_count: int) -> bytes:
    return OPEN_SESSION.pack(0, buffer_bytes, buffer_count, 0)


def open_file(path_bytes: int, *, write: bool) -> bytes:
    return OPEN_FILE.pack(path_bytes, NFC_DISK, OPEN_READ_WRITE if write else OPEN_READ_ONLY)


def read_request(handle: int, offset: int, length: int, compression: int) -> bytes:
    return IO.pack(handle, DIRECTION_READ, compression, offset, length, 0, length, length, 0)


def write_request(
    handle: int, offset: int, total: int, fragment_offset: int, fragment_bytes: int
) -> bytes:
    """A stored fragment; its data follow."""
    return IO.pack(
        handle, DIRECTION_WRITE, 0, offset, total, fragment_offset, fragment_bytes, fragment_bytes, 0
    )


def query_allocated(handle: int, chunk_bytes: int, start: int, count: int) -> bytes:
    return QUERY_ALLOCATED.pack(handle, 0, chunk_bytes, start, count, 0)


def bitmap_bytes(count: int) -> int:
    """One bit for each chunk, rounded up to whole 32-bit words."""
    return 4 * ((count + 31) // 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedFile:
    status: int
    handle: int
    capacity_bytes: int
    sector_bytes: int


def opened_file(payload: bytes | bytearray) -> OpenedFile:
    status, handle, _, _, _, capacity, sector, *_ = OPEN_FILE_REPLY.unpack(payload)
    return OpenedFile(status=status, handle=handle, capacity_bytes=capacity, sector_bytes=sector or 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """The fixed part of an I/O reply."""

    status: int
    direction: int
    compression: int
    offset: int
    total: int
    fragment_offset: int
    fragment_bytes: int
    wire_bytes: int


def fragment(payload: bytes | bytearray) -> Fragment:
    status, direction, compression, offset, total, start, length, wire, _ = IO.unpack(payload)
    return Fragment(
        status=status,
        direction=direction,
        compression=compression,
        offset=offset,
        total=total,
        fragment_offset=start,
        fragment_bytes=length,
        # A stored fragment's own length counts, whatever the other field says.
        wire_bytes=wire if compression else length,
    )
