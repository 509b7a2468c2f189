"""On-disk structures of format version 1.

Specified in docs/reference/repository-format.md; tests/format holds the two together.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

FORMAT_NAME: Final = "vmhaul-repository"
FORMAT_VERSION: Final = 1
FEATURE_EPOCHS: Final = "key-epochs"
FEATURE_PATCHES: Final = "patches"
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({FEATURE_EPOCHS, FEATURE_PATCHES})

KEY_VERSION: Final = 2
"""Of key objects, which have versions of their own."""

KEY_FILE: Final = Struct("<8sHBBII16s24s48s16s")
KEY_HEAD: Final = Struct("<8sHBBII16s24s32s24sI")
KEY_PAYLOAD: Final = Struct("<32s32s")
KEY_DESCRIPTION: Final = Struct("<QB63s")
EPOCH_HEAD: Final = Struct("<8sHHIIQ32s64s")
EPOCH_BOX: Final = Struct("<16s32s80s")
SEALED_HEADER: Final = Struct("<8sHBBB3sII32s")
PACK_HEADER: Final = Struct("<8sHHI16s16s")
BLOB_HEADER: Final = Struct("<4sBBBBIII32s32s")
PATCH_HEAD: Final = Struct("<32sIB3s")
BLOB_ENTRY: Final = Struct("<32sIIIBBH")
PACK_TRAILER: Final = Struct("<II16s8s")
INDEX_SEGMENT: Final = Struct("<16sII")
MAP_NODE: Final = Struct("<4sBBH")
POINT_HEAD: Final = Struct("<32s64s")
DOOMED_HEAD: Final = Struct("<Q")

KEY_MAGIC: Final = b"VMHLPKEY"
EPOCH_MAGIC: Final = b"VMHLEPOC"
SEALED_MAGIC: Final = b"VMHLSEAL"
PACK_MAGIC: Final = b"VMHLPACK"
PACK_END_MAGIC: Final = b"VMHLPEND"
BLOB_MAGIC: Final = b"VMHB"
NODE_MAGIC: Final = b"VMHN"

BLOB_ID_BYTES: Final = 32
ZERO_ID: Final = bytes(BLOB_ID_BYTES)
NONCE_FIELD_BYTES: Final = 32

NODE_ENTRIES: Final = 1024
NODE_ENTRIES_BITS: Final = 10  # 1024 == 1 << 10
NODE_BYTES_MAX: Final = NODE_ENTRIES * BLOB_ID_BYTES  # 32 KiB of ids under one head

MIN_BLOCK_SIZE_BYTES: Final = 4096
MAX_BLOCK_SIZE_BYTES: Final = 16 << 20
DEFAULT_BLOCK_SIZE_BYTES: Final = 1 << 20
MAX_BLOB_RAW_BYTES: Final = MAX_BLOCK_SIZE_BYTES  # a node is smaller than the largest block
MAX_SEALED_RAW_BYTES: Final = 1 << 30
PACK_TARGET_BYTES: Final = 64 << 20
"""A pack is closed when it passes this: one fsync for so much data, and little to rewrite in prune."""
MAX_PACK_BYTES: Final = 1 << 30
PATCH_PIECE_BYTES: Final = 512
"""Of new patches. A database's day stores 0.19 of its whole blocks so, and 0.31 with pieces of 4 KiB; for an
operating system's day it makes no difference.
"""
MIN_PATCH_PIECE_BYTES: Final = 512
MAX_PATCH_DEPTH: Final = 8
"""Patches between a blob and content that stands by itself, for readers. Writers make 1."""


class BlobKind(IntEnum):
    BLOCK = 1
    NODE = 2


class Encoding(IntEnum):
    RAW = 0
    ZSTD = 1
    PATCH = 2  # what differs from another blob, its base


class SealedKind(IntEnum):
    PACK_FOOTER = 1
    INDEX = 2
    POINT = 3
    WORK = 4
    FORGOTTEN = 5
    DOOMED = 6
