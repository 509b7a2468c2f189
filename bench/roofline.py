"""What this machine can do at best with the same bytes and the same libraries, and nothing else.

Every core takes the next block by itself: no queues, no map, no index, no deduplication, no order. With a
file to write to, what would be stored is appended there and synced at the end; without one it is dropped.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3

from pipeline.crypto.aead import ENGINE, NONCE_BYTES, fastest_algorithm
from pipeline.planning import BlockRanges
from pipeline.rawfile import RawFileReader
from pipeline.repository.blobs import compressor as blob_compressor
from transports.directio import open_direct, preallocate

BLOCK_BYTES = 1 << 20
KEY = bytes(32)
ZEROS = bytes(BLOCK_BYTES)


def offsets_of(image: Path) -> list[int]:
    """Blocks of the image that its file system holds data of."""
    reader = RawFileReader(image)
    found = {
        at
        for extent in reader.allocated_extents(0, reader.size_bytes)
        for at in range(extent.offset // BLOCK_BYTES * BLOCK_BYTES, extent.end, BLOCK_BYTES)
    }
    reader.close()
    return sorted(found)


def on_all_cores(
    make_worker: Callable[[], Callable[[int], None]], items: list[int], threads: int = 0
) -> None:
    """`threads` 0: one for each core."""
    numbers = count()

    def run() -> None:
        work = make_worker()
        while (number := next(numbers)) < len(items):
            work(items[number])

    threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result()


@dataclass(frozen=True, slots=True)
class Piece:
    """One block as the roofline stored it."""

    offset: int
    stored_at: int
    stored_length: int
    nonce: str
    is_packed: bool


def backup(image: Path, target: Path | None) -> dict[str, Any]:
    """Read, hash, compress, encrypt. `target` gets a list of its pieces beside it."""
    algorithm = fastest_algorithm()
    source = os.open(image, os.O_RDONLY)
    out = None if target is None else os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    lock = threading.Lock()
    pieces: list[Piece] = []
    stored_bytes = 0

    def make_worker() -> Callable[[int], None]:
        compressor = blob_compressor("fast")
        assert compressor is not None
        buffer = bytearray(BLOCK_BYTES)

        def work(offset: int) -> None:
            nonlocal stored_bytes
            os.preadv(source, [buffer], offset)
            if buffer == ZEROS:
                return
            blake3(buffer, key=KEY).digest()
            packed = compressor.compress(buffer)
            is_packed = len(packed) < BLOCK_BYTES
            nonce = os.urandom(NONCE_BYTES[algorithm])
            sealed = ENGINE.encrypt(algorithm, KEY, nonce, b"", packed if is_packed else buffer)
            with lock:
                at, stored_bytes = stored_bytes, stored_bytes + len(sealed)
                pieces.append(Piece(offset, at, len(sealed), nonce.hex(), is_packed))
            if out is not None:
                os.pwrite(out, sealed, at)

        return work

    on_all_cores(make_worker, offsets_of(image))
    if target is not None and out is not None:
        os.fsync(out)
        os.close(out)
        pieces_of(target).write_text(json.dumps([astuple(piece) for piece in pieces]))
    return {"stored_bytes": stored_bytes}


def restore(store: Path, target: Path | None, size_bytes: int) -> dict[str, Any]:
    """Read what backup() stored, decrypt, decompress, hash; write it where there is a `target`, in the best
    way that is known: into room made beforehand, past the page cache, from buffers that are used again.
    """
    algorithm = fastest_algorithm()
    pieces = [Piece(*fields) for fields in json.loads(pieces_of(store).read_text())]
    source = os.open(store, os.O_RDONLY)
    out = -1 if target is None else _room_for(target, pieces, size_bytes)

    def make_worker() -> Callable[[int], None]:
        decompressor = zstandard.ZstdDecompressor()
        plain = bytearray(BLOCK_BYTES + 64)
        content = memoryview(mmap.mmap(-1, BLOCK_BYTES))

        def work(number: int) -> None:
            piece = pieces[number]
            stored = os.pread(source, piece.stored_length, piece.stored_at)
            nonce = bytes.fromhex(piece.nonce)
            length = ENGINE.decrypt_into(algorithm, KEY, nonce, b"", stored, plain)
            if piece.is_packed:
                decompressor.stream_reader(memoryview(plain)[:length]).readinto(content)
            else:
                content[:] = memoryview(plain)[:length]
            blake3(content, key=KEY).digest()
            if out >= 0:
                os.pwrite(out, content, piece.offset)

        return work

    on_all_cores(make_worker, list(range(len(pieces))), threads=len(os.sched_getaffinity(0)) + 1)
    if out >= 0:
        os.fsync(out)
        os.close(out)
    return {"stored_bytes": store.stat().st_size}


def _room_for(target: Path, pieces: list[Piece], size_bytes: int) -> int:
    """A file with room for all pieces; a descriptor for direct writes where there are such."""
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(out, size_bytes)
    blocks = sorted(piece.offset // BLOCK_BYTES for piece in pieces)
    for first, end in BlockRanges((block, block + 1) for block in blocks):
        preallocate(out, first * BLOCK_BYTES, (end - first) * BLOCK_BYTES)
    direct = open_direct(out)
    if direct < 0:
        return out
    os.close(out)
    return direct


def pieces_of(store: Path) -> Path:
    return store.with_suffix(".pieces.json")
