"""Everything that is read from a repository."""

from __future__ import annotations

import contextlib
from typing import Final
from unittest import mock

from pipeline.crypto.aead import ENGINE, NONCE_BYTES
from pipeline.crypto.keyring import Keyring
from pipeline.crypto.unlock import (
    by_password,
    key_file_secret,
    key_file_text,
    new_key_file,
    new_recovery_key,
    recovery_key_secret,
    recovery_key_text,
    unlock_from_text,
)
from pipeline.errors import IntegrityError
from pipeline.repository import epochs, keys, layout
from pipeline.repository.blobs import BlobCodec, block_id, parse_blob_header
from pipeline.repository.canonical import to_canonical
from pipeline.repository.configuration import make_configuration, read_configuration
from pipeline.repository.doomed import read_doomed
from pipeline.repository.format import (
    BLOB_HEADER,
    DOOMED_HEAD,
    EPOCH_HEAD,
    FORMAT_VERSION,
    KEY_FILE,
    KEY_MAGIC,
    PACK_TRAILER,
    PATCH_HEAD,
    POINT_HEAD,
    BlobKind,
    SealedKind,
)
from pipeline.repository.index import (
    BlobEntry,
    PackSegment,
    format_segments,
    parse_entries,
    parse_segments,
)
from pipeline.repository.maps import MapBuilder, blocks, encode_node, open_node_ids
from pipeline.repository.packs import check_pack_header, pack_header, parse_trailer
from pipeline.repository.patches import parse_head, patch_into, payload_limit
from pipeline.repository.points import (
    format_forgotten,
    format_point,
    parse_forgotten,
    parse_point,
    signed_message,
)
from pipeline.repository.sealed import decoded, seal, unseal
from pipeline.repository.work import read_work
from pipeline.testing.builders import CHEAP_KDF, disk_point, restore_point
from pipeline.testing.storage import MemoryStorage
from tests.fuzz.target import (
    ALGORITHM,
    ALLOWED_BY_READERS,
    BLOCK,
    BOX_KEY,
    KEYRING,
    MOST_BLOCKS,
    PACK_ID,
    POINT_ID,
    exactly,
    payload_of,
    sealed_in,
    target,
)

# ---- repository: before there is a key -----------------------------------------------------------

_KEY: Final = KEY_FILE.pack(
    KEY_MAGIC, FORMAT_VERSION, 1, 1, 1, 8, bytes(16), bytes(24), bytes(48), bytes(16)
)


@target(ALLOWED_BY_READERS, [_KEY, _KEY[:-1]])
def key_object(data: bytes) -> None:
    with mock.patch.object(keys, "password_key", return_value=bytes(32)):
        keys.unwrap_master_key(data, "password", bytes(16))
        body = exactly(data, KEY_FILE.size - keys.CHECKSUM_BYTES)
        keys.unwrap_master_key(body + keys.checksum(body), "password", bytes(16))


@target(ALLOWED_BY_READERS, [make_configuration(KEYRING, 1 << 20, ALGORITHM, 1)])
def configuration(data: bytes) -> None:
    storage = MemoryStorage()
    storage.put(layout.CONFIGURATION, data)
    read_configuration(storage)


@target((ValueError,), [KEYRING.material().encode()])
def key_material(data: bytes) -> None:
    Keyring.from_material(data.decode("latin-1"), bytes(16))


@target((), [layout.pack_name(PACK_ID).encode(), layout.index_name(PACK_ID).encode()])
def object_name(data: bytes) -> None:
    layout.pack_id_of(data.decode("latin-1"))


_PASSWORD: Final = by_password("open sesame")
_KEY_ID: Final = bytes(range(16))
_SECOND_KEY: Final = keys.wrap_keyring(
    KEYRING, _PASSWORD, _KEY_ID, label="label", created_at_s=1, cost=CHEAP_KDF
)
_RECIPIENT: Final = epochs.Recipient(key_id=_KEY_ID, public_key=bytes(BOX_KEY.public_key))


@target(ALLOWED_BY_READERS, [_SECOND_KEY])
def key_object_of_several(data: bytes) -> None:
    """Version 2, its checksum made right, opened and described as far as that goes."""
    body = data[: -keys.CHECKSUM_BYTES]
    with mock.patch.object(keys, "password_key", return_value=bytes(32)):
        key = keys.parse_key(_KEY_ID, body + keys.checksum(body))
        keys.open_key(key, _PASSWORD, KEYRING.repository_id)
        keys.describe(key, KEYRING)


@target(ALLOWED_BY_READERS, [epochs.format_epoch(KEYRING, 3, bytes(32), 1, [_RECIPIENT])])
def key_epoch(data: bytes) -> None:
    """As it is, and signed."""
    for signed in (data, _signed_epoch(data)):
        with contextlib.suppress(*ALLOWED_BY_READERS):
            epoch = epochs.parse_epoch(KEYRING, 3, signed)
            secret = epochs.opened_secret(epoch, _KEY_ID, bytes(BOX_KEY))
            if secret is not None:
                epochs.verify_proof(KEYRING, epoch, secret)


def _signed_epoch(data: bytes) -> bytes:
    head, boxes = exactly(data, epochs.SIGNED_BYTES), data[EPOCH_HEAD.size :]
    words = epochs._SIGNATURE_WORDS + KEYRING.repository_id
    return head + KEYRING.sign(words + head + boxes) + boxes


@target(
    (ValueError,),
    [
        recovery_key_text(new_recovery_key()).encode(),
        key_file_text(new_key_file(), "6f1c2b44-0000-4000-8000-000000000001").encode(),
        b"password",
    ],
)
def key_text(data: bytes) -> None:
    """What is given where a password is asked for, and the two forms by themselves."""
    text = data.decode("utf-8", "replace")
    unlock_from_text(text)
    for read in (recovery_key_secret, key_file_secret):
        with contextlib.suppress(ValueError):
            assert len(read(text)) == 32


# ---- repository: sealed objects ------------------------------------------------------------------


@target(ALLOWED_BY_READERS, [seal(KEYRING, ALGORITHM, SealedKind.INDEX, "index/1", b"x" * 99)])
def sealed_object(data: bytes) -> None:
    unseal(KEYRING, SealedKind.INDEX, "index/1", data)


@target(ALLOWED_BY_READERS, [b"\1\x40\0\0\0\x28\xb5\x2f\xfd\x20\x40" + b"\x03\x02\0a"])
def encoded_payload(data: bytes) -> None:
    encoding, length, body = data[:1], data[1:5], data[5:]
    decoded(int.from_bytes(encoding), body, int.from_bytes(length, "little"), "an object")


_ENTRIES: Final = (
    BlobEntry(bytes(range(32)), 48, 200, 4096, 1, 1),
    BlobEntry(bytes(range(1, 33)), 248, 200, 4096, 1, 2, bytes(range(32))),
    BlobEntry(bytes(range(2, 34)), 448, 100, 40, 2, 0),
)
_SEGMENTS: Final = format_segments([PackSegment(PACK_ID, 900, _ENTRIES)])


@target(ALLOWED_BY_READERS, [_SEGMENTS, _SEGMENTS * 2])
def index_payload(data: bytes) -> None:
    parse_segments(data, "index")


@target(ALLOWED_BY_READERS, [_SEGMENTS[24:]])
def footer_payload(data: bytes) -> None:
    parse_entries(data, 900, "footer")


@target(ALLOWED_BY_READERS, [DOOMED_HEAD.pack(99) + _SEGMENTS, DOOMED_HEAD.pack((1 << 64) - 1)])
def doomed_payload(data: bytes) -> None:
    list(read_doomed(sealed_in(SealedKind.DOOMED, "doomed/1", data), KEYRING))


_FORGOTTEN: Final = payload_of(
    SealedKind.FORGOTTEN,
    layout.forgotten_name(POINT_ID),
    format_forgotten(KEYRING, ALGORITHM, POINT_ID, bytes(32), restore_point().created_at),
)


@target(ALLOWED_BY_READERS, [_FORGOTTEN])
def forgotten_payload(data: bytes) -> None:
    name = layout.forgotten_name(POINT_ID)
    parse_forgotten(KEYRING, name, seal(KEYRING, ALGORITHM, SealedKind.FORGOTTEN, name, data))


_POINT: Final = payload_of(
    SealedKind.POINT,
    layout.point_name(POINT_ID),
    format_point(
        KEYRING,
        ALGORITHM,
        restore_point(disk_point("ab" * 32, 1 << 30), point_id=POINT_ID),
        None,
        restore_point().created_at,
    ),
)


@target(ALLOWED_BY_READERS, [_POINT])
def point_payload(data: bytes) -> None:
    name = layout.point_name(POINT_ID)
    parse_point(KEYRING, name, seal(KEYRING, ALGORITHM, SealedKind.POINT, name, data))


@target(ALLOWED_BY_READERS, [_POINT[POINT_HEAD.size :]])
def point_manifest(data: bytes) -> None:
    """Signed as well."""
    signature = KEYRING.sign(signed_message(KEYRING, bytes(32), data))
    point_payload(POINT_HEAD.pack(bytes(32), signature) + data)


_NODES: Final = [
    {
        "level": 0,
        "number": 0,
        "base": "00" * 32,
        "changed": True,
        "entries": "AAAA" * 10922 + "AAA=",
    }
]
_WORK: Final = to_canonical(
    {
        "state": "partial",
        "begun_at": "1.5",
        "capacity_bytes": 1 << 20,
        "read_mode": "full",
        "base_root": "",
        "next_block": 3,
        "nodes": _NODES,
        "map_root": "",
        "stats": {},
    }
)


@target(ALLOWED_BY_READERS, [_WORK, _WORK.replace(b'"nodes":[{', b'"nodes":[{"x":1,')])
def work_payload(data: bytes) -> None:
    """As far as an attempt that goes on from it uses it."""
    record = read_work(sealed_in(SealedKind.WORK, "work/1", data), KEYRING, "1")
    assert record is not None
    list(open_node_ids(record.nodes))
    builder = MapBuilder(
        base_root=bytes.fromhex(record.base_root),
        block_count=256,
        load_node=_no_node,
        store_node=lambda _content: bytes(range(32)),
    )
    builder.go_on(record.nodes, record.next_block)
    builder.finish()


def _no_node(_blob_id: bytes) -> bytes:
    raise IntegrityError("there is no such node")


# ---- repository: packs, blobs, maps --------------------------------------------------------------


@target(ALLOWED_BY_READERS, [PACK_TRAILER.pack(548, 320, PACK_ID, b"VMHLPEND")])
def pack_ends(data: bytes) -> None:
    parse_trailer(exactly(data, PACK_TRAILER.size), PACK_ID, 900)


@target(ALLOWED_BY_READERS, [pack_header(KEYRING, PACK_ID)])
def pack_begins(data: bytes) -> None:
    check_pack_header(KEYRING, PACK_ID, data)


_CODEC: Final = BlobCodec(KEYRING, ALGORITHM, "fast")
_BLOB: Final = _CODEC.encode(BlobKind.BLOCK, block_id(KEYRING, BLOCK), BLOCK)
_PLAIN_BLOB: Final = _BLOB.header + bytes(
    ENGINE.decrypt(
        ALGORITHM,
        KEYRING.encryption_key_of(KEYRING.epoch, "a blob"),
        _BLOB.header[52 : 52 + NONCE_BYTES[ALGORITHM]],
        _BLOB.header + KEYRING.repository_id,
        _BLOB.body,
    )
)


@target(ALLOWED_BY_READERS, [_BLOB.header + bytes(_BLOB.body)])
def stored_blob(data: bytes) -> None:
    parse_blob_header(data[: BLOB_HEADER.size], "a blob")
    _CODEC.decode(BlobKind.BLOCK, _BLOB.blob_id, data)


@target(ALLOWED_BY_READERS, [_PLAIN_BLOB])
def blob_content(data: bytes) -> None:
    """Encrypted as its header says, so that what is below the encryption is reached."""
    header, plain = bytearray(exactly(data, BLOB_HEADER.size)), data[BLOB_HEADER.size :]
    header[12:16] = (len(plain) + 16).to_bytes(4, "little")
    facts = parse_blob_header(bytes(header), "a blob")
    key = KEYRING.encryption_key_of(facts.key_epoch, "a blob")
    associated = bytes(header) + KEYRING.repository_id
    body = ENGINE.encrypt(facts.aead, key, facts.nonce, associated, plain)
    _CODEC.decode(facts.kind, facts.blob_id, bytes(header) + bytes(body))


@target(ALLOWED_BY_READERS, [PATCH_HEAD.pack(bytes(range(32)), 64, 0, bytes(3)) + b"\1" + bytes(64)])
def patch_body(data: bytes) -> None:
    """Head and payload of a patch of a block of 600 bytes."""
    head = parse_head(data, "a patch")
    payload = data[PATCH_HEAD.size :]
    assert len(payload) <= payload_limit(1 << 30, head.piece_bytes)
    patch_into(bytearray(600), bytes(600), payload, head.piece_bytes, "a patch")


_NODE: Final = encode_node(0, bytes(range(32)) * 4)


@target(ALLOWED_BY_READERS, [b"\0" + _NODE, b"\1" + encode_node(1, bytes(range(32)))])
def map_node(data: bytes) -> None:
    """A map whose every node has the input as its content; a disk of one or of two levels."""
    count = 1024 if data[:1] == b"\0" else MOST_BLOCKS
    for number, _ in enumerate(blocks(lambda _id: data[1:], bytes(range(32)), count)):
        assert number < count
