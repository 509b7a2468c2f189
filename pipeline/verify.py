"""Reading restore points back without a target: every block is decoded and compared with its id."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from pipeline.errors import CancelledError, IntegrityError
from pipeline.model import RestorePoint
from pipeline.progress import MoverProgress
from pipeline.repository.repository import Repository
from pipeline.restore import ordered_blocks, restore_disk
from pipeline.stages.flow import Clock
from pipeline.storage.base import Buffer
from transports import system
from transports.base import TransportMode, WriterCapabilities

BLOCKS_AHEAD: Final = 8
ZERO_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDisk:
    disk_key: int
    label: str
    blocks: int
    """Blocks that were read back and compared."""
    problem: str
    """Empty: the disk can be restored."""


class NowhereWriter:
    """A DiskWriter that drops everything."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def capabilities(self) -> WriterCapabilities:
        return WriterCapabilities(
            mode=TransportMode.DIRECT_NFS, max_request_bytes=1 << 30, reads_as_zero_when_new=True
        )

    def write_from(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size_bytes:
            raise ValueError("write past the end of the disk")

    def flush(self) -> None:
        return

    def close(self) -> None:
        return


def verify_point(
    *,
    repository: Repository,
    point: RestorePoint,
    cancel: threading.Event,
    progress: Callable[[MoverProgress], None],
    clock: Clock,
) -> tuple[VerifiedDisk, ...]:
    """Read every disk of a point back. Damage is in the answer; other errors are raised."""
    verified = []
    for disk in point.disks:
        blocks, problem = 0, ""
        try:
            stats = restore_disk(
                repository=repository,
                map_root=disk.map_root,
                capacity_bytes=disk.capacity_bytes,
                writer=NowhereWriter(disk.capacity_bytes),
                skip_zeros=True,
                cancel=cancel,
                progress=progress,
                clock=clock,
            )
            blocks = stats.blocks
            if disk.sha256 and disk.sha256 != image_sha256(
                repository=repository,
                map_root=disk.map_root,
                capacity_bytes=disk.capacity_bytes,
                cancel=cancel,
            ):
                problem = "the image has another SHA-256 than when it was backed up"
        except IntegrityError as error:
            problem = str(error)
        verified.append(
            VerifiedDisk(disk_key=disk.disk_key, label=disk.label, blocks=blocks, problem=problem)
        )
    return tuple(verified)


def image_sha256(
    *,
    repository: Repository,
    map_root: str,
    capacity_bytes: int,
    cancel: threading.Event | None = None,
) -> str:
    """SHA-256 of a disk's raw image, as restored, without restoring it. Raises IntegrityError."""
    reader = repository.reader()
    size = repository.block_size_bytes
    digest = hashlib.sha256()
    waiting: deque[tuple[int, Future[Buffer]]] = deque()
    position = 0

    def take() -> int:
        block, content = waiting.popleft()
        hash_zeros(digest, block * size - position)
        digest.update(content.result())
        return block * size + len(content.result())

    with ThreadPoolExecutor(system.usable_cpus() + 1) as executor:
        for block, blob_id in ordered_blocks(reader, map_root, capacity_bytes, size):
            if cancel is not None and cancel.is_set():
                raise CancelledError("hashing the image was cancelled")
            waiting.append((block, executor.submit(reader.load_block, blob_id)))
            if len(waiting) > BLOCKS_AHEAD:
                position = take()
        while waiting:
            position = take()
    hash_zeros(digest, capacity_bytes - position)
    return digest.hexdigest()


def hash_zeros(digest: hashlib._Hash, length: int) -> None:
    """Feed so many zero bytes."""
    chunk = bytes(min(length, ZERO_CHUNK_BYTES)) if length > 0 else b""
    while length > 0:
        digest.update(chunk[:length] if length < len(chunk) else chunk)
        length -= len(chunk)
